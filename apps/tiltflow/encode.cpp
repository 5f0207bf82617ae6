// tiltflow encode: pictures to latents, once; the file is verified and reused.
#include <mutex>

#include "options.h"
#include "tiltflow/base/error.h"
#include "tiltflow/base/folder_claim.h"
#include "tiltflow/base/hash.h"
#include "tiltflow/base/log.h"
#include "tiltflow/base/progress.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/io/dataset.h"
#include "tiltflow/io/latents.h"
#include "tiltflow/models/autoencoder/autoencoder.h"
#include "tiltflow/models/precision_choice.h"
#include "tiltflow/tensor/aten.h"
#include "tiltflow/tensor/parallel.h"
#include "tiltflow/tensor/precision.h"
#include "verbs.h"

namespace tiltflow::app {
namespace {

struct EncodeOptions {
  AutoencoderConfig autoencoder;
  std::vector<std::string> args;
  ComputeConfig compute;
  DatasetConfig data{"folder", ""};
  std::string split = "train";
  std::string out;
  std::int64_t chunk = 8;
};

std::string fingerprint_of(const Autoencoder& autoencoder) {
  std::string text = cat(autoencoder.kind(), " ", compact(autoencoder.scale, 12), " ",
                         compact(autoencoder.shift, 12));
  for (const auto& [name, tensor] : autoencoder.parameters()) {
    const at::Tensor whole = tensor.contiguous();
    text +=
        cat(" ", name, " ", fnv1a({static_cast<const char*>(whole.data_ptr()), whole.nbytes()}));
  }
  return cat(fnv1a(text));
}

int encode(EncodeOptions o) {
  const std::string precision = precision_name(apply(o.compute));
  o.autoencoder.args = key_values(o.args);
  o.autoencoder.precision = precision;
  const auto autoencoder = load_autoencoder(o.autoencoder);
  const ImageDataset data = read_dataset(o.data, o.split);
  const std::int64_t n = data.size();
  const std::int64_t side = autoencoder->downscale();
  const std::vector<std::int64_t> shape = data.shape();
  if (shape[0] != 3) {
    fail(ErrorKind::kBadFile,
         cat("the pictures have ", shape[0], " channel, the autoencoder takes 3"));
  }
  if (shape[1] % side != 0 || shape[2] % side != 0) {
    fail(ErrorKind::kBadFile,
         cat("the pictures are ", shape[1], " x ", shape[2], ": both sides must be multiples of ",
             side),
         "--size crops and resizes them");
  }
  const std::string source =
      cat(fingerprint(data), " by ", fingerprint_of(*autoencoder), " in ", precision);
  const FolderClaim claim = FolderClaim::of_file(o.out);
  if (std::filesystem::is_regular_file(o.out) && latents_source(o.out) == source) {
    log_info(cat(o.out, ": these ", n, " pictures are encoded already (checksum verified)"));
    return 0;
  }
  Progress progress("encode", n);
  std::vector<Moments> parts(static_cast<std::size_t>((n + o.chunk - 1) / o.chunk));
  std::mutex mutex;
  std::int64_t done = 0;
  parallel_chunks(n, o.chunk, [&](std::int64_t begin, std::int64_t end) {
    const at::NoGradGuard no_grad;
    Moments moments = autoencoder->encode(data.batch(at::arange(begin, end)) * 2 - 1);
    require_finite(moments.mean, cat("the latent of pictures ", begin, " to ", end - 1));
    const std::lock_guard lock(mutex);
    parts[static_cast<std::size_t>(begin / o.chunk)] = std::move(moments);
    progress.update(done += end - begin);
  });
  LatentFile file;
  std::vector<at::Tensor> mean, logvar;
  for (const Moments& part : parts) {
    mean.push_back(part.mean.contiguous());
    if (part.logvar.defined()) logvar.push_back(part.logvar.contiguous());
  }
  file.mean = at::cat(mean);
  if (!logvar.empty()) file.logvar = at::cat(logvar);
  file.labels = data.labels;
  file.scale = autoencoder->scale;
  file.shift = autoencoder->shift;
  file.source = source;
  write_latents(o.out, file);
  const at::Tensor scaled = autoencoder->to_scaled(file.mean);
  log_info(cat("wrote ", n, " latents ", shape_text(file.mean.sizes().slice(1)), " to ", o.out,
               "; scaled mean ", compact(scaled.mean().item<double>(), 3), ", deviation ",
               compact(scaled.std().item<double>(), 3)));
  return 0;
}

}  // namespace

void add_encode(CLI::App& program, Action& action) {
  auto* verb = program.add_subcommand(
      "encode", "encode pictures to latents once, for pretraining latent models");
  auto o = std::make_shared<EncodeOptions>();
  verb->add_option("--autoencoder", o->autoencoder.file,
                   "folder or file in the names of diffusers (AutoencoderKL, AutoencoderTiny)")
      ->required();
  verb->add_option("--autoencoder-arg", o->args,
                   "scaling_factor, shift_factor or norm_num_groups (repeatable)")
      ->type_name("KEY=VALUE")
      ->allow_extra_args(false);
  add_data_options(*verb, o->data, "folder of pictures")->required();
  verb->add_option("--split", o->split, "train or test")
      ->check(CLI::IsMember({"train", "test"}))
      ->capture_default_str();
  verb->add_option("--out", o->out, "safetensors file; kept when it holds these pictures already")
      ->required();
  verb->add_option("--chunk", o->chunk, "pictures per piece of work")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  add_compute_options(*verb, o->compute);
  verb->footer(
      "Example:\n  tiltflow encode --autoencoder sd-vae-ft-ema --data imagenet --size 256 --out "
      "latents.safetensors\n  tiltflow pretrain my.toml --set data.format=latents --set "
      "data.path=latents.safetensors");
  verb->callback([=, &action] { action = [o] { return encode(*o); }; });
}

}  // namespace tiltflow::app
