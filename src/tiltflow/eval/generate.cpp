#include "tiltflow/eval/generate.h"

#include <algorithm>

#include "tiltflow/base/error.h"
#include "tiltflow/base/file.h"
#include "tiltflow/base/file_lock.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/eval/sample_folder.h"
#include "tiltflow/io/image.h"
#include "tiltflow/io/npz.h"
#include "tiltflow/io/safetensors.h"
#include "tiltflow/tensor/aten.h"
#include "tiltflow/tensor/parallel.h"

namespace tiltflow {
namespace {

struct Part {
  std::int64_t first, n;
  std::filesystem::path file;
};

std::string padded(std::int64_t i, std::size_t width) {
  const std::string digits = std::to_string(i);
  return std::string(digits.size() < width ? width - digits.size() : 0, '0') + digits;
}

std::vector<Part> parts_of(const GenerateOptions& o) {
  std::vector<Part> parts;
  for (std::int64_t begin = 0; begin < o.n; begin += o.part) {
    const std::int64_t n = std::min(o.part, o.n - begin);
    parts.push_back(
        {o.first + begin, n,
         o.out / "parts" /
             cat(padded(o.first + begin, 9), "-", padded(o.first + begin + n, 9), ".safetensors")});
  }
  return parts;
}

// How many of a part's samples are in grid.png.
std::int64_t in_grid(const Part& part, const GenerateOptions& o) {
  return std::clamp<std::int64_t>(o.first + o.grid - part.first, 0, part.n);
}

bool is_image(const at::Tensor& x) { return x.dim() == 4 && is_picture(x.sizes().slice(1)); }

void write_pictures(const Part& part, const at::Tensor& images, bool prediction,
                    const GenerateOptions& o) {
  parallel_chunks(images.size(0), 16, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      std::map<std::string, std::string> text = o.request;
      text["index"] = std::to_string(part.first + i);
      text["Software"] = "tiltflow";
      if (prediction) text["shows"] = "the sample without the noise of the sampler's last step";
      write_png(o.out / (padded(part.first + i, 6) + ".png"), images[i], text);
    }
  });
}

void pack(const std::vector<Part>& parts,
          const std::function<at::Tensor(const at::Tensor&)>& decode, const GenerateOptions& o) {
  std::vector<at::Tensor> samples, labels, noise, pictures;
  std::int64_t shown = 0;
  for (const Part& part : parts) {
    const ParameterSet t = read_safetensors(part.file).tensors;
    at::Tensor x = t.at("samples");
    if (t.contains("noise")) noise.push_back(t.at("noise"));
    if (t.contains("labels")) labels.push_back(t.at("labels"));
    const std::int64_t wanted = in_grid(part, o);
    const at::NoGradGuard no_grad;
    if (wanted > 0) {
      const at::Tensor seen = t.contains("prediction") ? t.at("prediction") : x;
      const at::Tensor images = decode(seen.narrow(0, 0, wanted)).clamp(0, 1);
      if (is_image(images)) {
        pictures.push_back(images);
        shown += wanted;
      }
    }
    if (o.pack == "npz") {  // the law that was asked for, not what pictures show
      const at::Tensor images = decode(x).clamp(0, 1);
      if (is_image(images)) {
        x = images.mul(255).round().to(at::kByte).permute({0, 2, 3, 1}).contiguous();
      }
    }
    if (o.pack != "none") samples.push_back(x);
  }
  const at::Tensor all_labels = labels.empty() ? at::Tensor() : at::cat(labels);
  if (!pictures.empty()) {
    std::vector<std::string> captions;
    for (std::int64_t i = 0; all_labels.defined() && i < shown; ++i) {
      captions.push_back(std::to_string(all_labels[i].item<std::int64_t>()));
    }
    write_png(o.out / "grid.png",
              image_grid(at::cat(pictures), static_cast<int>(o.columns), captions), o.request);
  }
  if (o.pack == "none") return;
  ParameterSet out;
  const bool npz = o.pack == "npz";
  out.add(npz ? "arr_0" : "samples", at::cat(samples));
  if (all_labels.defined()) out.add(npz ? "arr_1" : "labels", all_labels);
  if (!noise.empty() && !npz) out.add("noise", at::cat(noise));
  if (npz) {
    write_npz(o.out / "samples.npz", out);
  } else {
    write_safetensors(o.out / "samples.safetensors", out, o.request);
  }
}

// Draws one part, writes its pictures and its file.
Draws draw_part(const VelocityField& field, const SamplerConfig& sampler, const Path& path,
                at::IntArrayRef shape, const RandomStreams& streams, const LabelSource& labels,
                const std::function<at::Tensor(const at::Tensor&)>& decode,
                const GenerateOptions& o, const Part& part,
                const std::function<void(std::int64_t)>& progress) {
  const bool noisy = leaves_noise(sampler, path);
  DrawOptions options;
  options.n = part.n;
  options.first = part.first;
  options.chunk = o.chunk;
  options.progress = progress;
  options.keep_noise = o.keep_noise;
  const std::int64_t shown = in_grid(part, o);  // whose predictions are kept
  options.keep_prediction = noisy && (o.png || shown > 0);
  Draws draws = draw(field, sampler, path, shape, streams, labels, options);
  ParameterSet tensors;
  tensors.add("samples", draws.x);
  if (draws.noise.defined()) tensors.add("noise", draws.noise);
  if (draws.labels.defined()) tensors.add("labels", draws.labels);
  if (o.png) {
    const at::NoGradGuard no_grad;
    const at::Tensor images = decode(noisy ? draws.prediction : draws.x).clamp(0, 1);
    if (is_image(images)) write_pictures(part, images, noisy, o);
  }
  if (noisy && shown > 0) {
    tensors.add("prediction", draws.prediction.narrow(0, 0, shown).contiguous());
  }
  write_safetensors(part.file, tensors);
  return draws;
}

// Whoever finds all parts packs them; a shard that comes later finds none. True when the samples
// are complete.
bool pack_if_complete(const std::vector<Part>& parts,
                      const std::function<at::Tensor(const at::Tensor&)>& decode,
                      const GenerateOptions& o) {
  const ProcessLock lock(o.out / ".lock-pack");
  if (!std::filesystem::exists(o.out / "parts")) return true;
  const bool complete = std::all_of(parts.begin(), parts.end(), [](const Part& part) {
    return std::filesystem::exists(part.file);
  });
  if (complete) {
    pack(parts, decode, o);
    std::filesystem::remove_all(o.out / "parts");
  }
  return complete;
}

}  // namespace

GenerateResult generate(const VelocityField& field, const SamplerConfig& sampler, const Path& path,
                        at::IntArrayRef shape, const RandomStreams& streams,
                        const LabelSource& labels,
                        const std::function<at::Tensor(const at::Tensor&)>& decode,
                        const GenerateOptions& o) {
  if (o.shards < 1 || o.shard < 0 || o.shard >= o.shards) {
    fail(ErrorKind::kConfig, cat("shard ", o.shard, " of ", o.shards, " does not exist"),
         "shards count from 0");
  }
  GenerateResult result;
  const SampleFolder folder = open_sample_folder(o);
  if (folder.finished) {
    result.complete = true;
    result.kept = o.n;
    return result;
  }
  const std::vector<Part> parts = parts_of(o);
  const auto progress = [&](std::int64_t within) {
    if (o.progress) o.progress(result.drawn + result.kept + within);
  };
  for (std::size_t i = static_cast<std::size_t>(o.shard); i < parts.size();
       i += static_cast<std::size_t>(o.shards)) {
    const Part& part = parts[i];
    if (std::filesystem::exists(part.file)) {
      result.kept += part.n;
      progress(0);
      continue;
    }
    const Draws draws =
        draw_part(field, sampler, path, shape, streams, labels, decode, o, part, progress);
    result.drawn += part.n;
    if (draws.evaluations > result.evaluations) {
      result.evaluations = draws.evaluations;
      result.accepted = draws.accepted;
      result.rejected = draws.rejected;
    }
  }
  result.complete = pack_if_complete(parts, decode, o);
  return result;
}

}  // namespace tiltflow
