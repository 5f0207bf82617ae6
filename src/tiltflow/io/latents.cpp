#include "tiltflow/io/latents.h"

#include <cmath>
#include <cstdlib>

#include "tiltflow/base/error.h"
#include "tiltflow/base/hash.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/io/safetensors.h"
#include "tiltflow/tensor/aten.h"

namespace tiltflow {
namespace {

namespace fs = std::filesystem;

std::string checksum(const at::Tensor& mean, const at::Tensor& logvar, const at::Tensor& labels) {
  return cat(bytes_hash(mean), "-", logvar.defined() ? bytes_hash(logvar) : 0, "-",
             bytes_hash(labels));
}

struct ReadLatents {
  LatentFile latents;
  bool intact = false;
};

bool is_finite(const at::Tensor& x) { return x.isfinite().all().item<bool>(); }

// "" or what is wrong.
std::string flaw_of(const LatentFile& l) {
  if (l.mean.dim() != 4 || l.mean.scalar_type() != at::kFloat) {
    return cat("'mean' is ", toString(l.mean.scalar_type()), " ", shape_text(l.mean.sizes()),
               ", expected float32 [N, c, h, w]");
  }
  if (l.mean.numel() == 0) return "'mean' is empty";
  if (l.labels.dim() != 1 || l.labels.scalar_type() != at::kLong) {
    return cat("'labels' is ", toString(l.labels.scalar_type()), " ", shape_text(l.labels.sizes()),
               ", expected int64 [N]");
  }
  if (l.labels.size(0) != l.mean.size(0)) {
    return cat(l.mean.size(0), " latents but ", l.labels.size(0), " labels");
  }
  if (l.logvar.defined() &&
      (l.logvar.sizes() != l.mean.sizes() || l.logvar.scalar_type() != at::kFloat)) {
    return cat("'logvar' is ", shape_text(l.logvar.sizes()), ", 'mean' is ",
               shape_text(l.mean.sizes()));
  }
  if (!(l.scale > 0) || !std::isfinite(l.scale) || !std::isfinite(l.shift)) {
    return cat("scale ", l.scale, " and shift ", l.shift, " are no numbers to scale with");
  }
  if (!is_finite(l.mean) || (l.logvar.defined() && !is_finite(l.logvar))) {
    return "the latents are not finite";
  }
  return "";
}

ReadLatents read_latent_file(const fs::path& file) {
  const TensorFile t = read_safetensors(file);
  const auto text = [&](const char* key) {
    const auto found = t.metadata.find(key);
    return found == t.metadata.end() ? std::string() : found->second;
  };
  if (!t.tensors.contains("mean") || !t.tensors.contains("labels") ||
      text("latents.source").empty()) {
    fail(ErrorKind::kBadFile, cat(file.string(), ": no encoded pictures"),
         "make them with `tiltflow encode`");
  }
  ReadLatents out;
  LatentFile& l = out.latents;
  l.mean = t.tensors.at("mean");
  l.labels = t.tensors.at("labels");
  if (t.tensors.contains("logvar")) l.logvar = t.tensors.at("logvar");
  l.scale = std::atof(text("latents.scale").c_str());
  l.shift = std::atof(text("latents.shift").c_str());
  l.source = text("latents.source");
  const std::string flaw = flaw_of(l);
  if (!flaw.empty()) {
    fail(ErrorKind::kBadFile,
         cat(file.string(), ": the encoded pictures and labels do not fit each other: ", flaw),
         "encode them again");
  }
  class_count(l.labels, file.string());
  out.intact = text("latents.checksum") == checksum(l.mean, l.logvar, l.labels);
  return out;
}

}  // namespace

void write_latents(const fs::path& file, const LatentFile& l) {
  ParameterSet tensors;
  tensors.add("mean", l.mean);
  tensors.add("labels", l.labels);
  if (l.logvar.defined()) tensors.add("logvar", l.logvar);
  write_safetensors(file, tensors,
                    {{"latents.source", l.source},
                     {"latents.scale", compact(l.scale, 12)},
                     {"latents.shift", compact(l.shift, 12)},
                     {"latents.checksum", checksum(l.mean, l.logvar, l.labels)}});
}

std::string latents_source(const fs::path& file) {
  if (!fs::exists(file)) return "";
  try {
    const ReadLatents found = read_latent_file(file);
    return found.intact ? found.latents.source : "";
  } catch (const Error&) {
    return "";
  }
}

ImageDataset read_latents(const fs::path& file) {
  const auto [l, intact] = read_latent_file(file);
  if (!intact) {
    fail(ErrorKind::kBadFile, cat(file.string(), ": the encoded pictures fail their checksum"),
         "encode them again");
  }
  ImageDataset data;
  data.mean = (l.mean - l.shift) * l.scale;
  if (l.logvar.defined()) data.deviation = (l.logvar * 0.5).exp() * l.scale;
  data.labels = l.labels;
  const std::int64_t classes = class_count(l.labels, file.string());
  for (std::int64_t i = 0; i < classes; ++i) data.class_names.push_back(std::to_string(i));
  return data;
}

}  // namespace tiltflow
