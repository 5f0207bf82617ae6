#include "tiltflow/models/model_file.h"

#include <algorithm>
#include <cstdlib>
#include <nlohmann/json.hpp>

#include "tiltflow/base/error.h"
#include "tiltflow/base/log.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/io/tensor_file.h"
#include "tiltflow/models/control/controlled_model.h"
#include "tiltflow/models/foreign_model.h"
#include "tiltflow/models/generator/generator.h"
#include "tiltflow/models/mixture/mixture_model.h"
#include "tiltflow/models/mlp/mlp.h"
#include "tiltflow/models/model_identity.h"
#include "tiltflow/models/product/product_model.h"
#include "tiltflow/models/sit/sit.h"
#include "tiltflow/tensor/aten.h"
#include "tiltflow/tensor/device.h"

namespace tiltflow {
namespace {

using Args = std::map<std::string, std::string>;

// In `dtype`, where networks compute.
ParameterSet cast(const ParameterSet& tensors, at::ScalarType dtype) {
  ParameterSet out;
  for (const auto& [name, tensor] : tensors) {
    out.add(name, to_compute_device(tensor.is_floating_point() ? tensor.to(dtype) : tensor));
  }
  return out;
}

std::unique_ptr<VelocityModel> build(const std::string& family, const ParameterSet& tensors,
                                     const Args& args, ModelRuntime runtime,
                                     const std::string& where) {
  if (family == "sit") {
    const SitConfig config = infer_sit_config(tensors, args);
    require_fit(sit_shapes(config), tensors, where);
    return make_sit(config, tensors, {}, runtime);
  }
  if (family == "mlp") {
    const MlpConfig config = mlp_config_from_args(args);
    require_fit(init_mlp(config, RandomStreams(0)), tensors, where);
    return make_mlp(config, tensors, {}, runtime);
  }
  if (family == "gaussian-mixture") {
    const auto path = args.find("path");
    return std::make_unique<MixtureModel>(mixture_from_tensors(tensors, where),
                                          make_path(path == args.end() ? "linear" : path->second));
  }
  if (family == "product") {
    constexpr std::int64_t kMost = 64;
    const auto found = args.find("agents");
    const std::int64_t count = found == args.end() ? 0 : std::atoll(found->second.c_str());
    if (count < 1 || count > kMost) {
      fail(ErrorKind::kBadFile, cat(where, ": a product of ", count, " models"));
    }
    std::vector<std::shared_ptr<const VelocityModel>> agents;
    for (std::int64_t i = 0; i < count; ++i) {
      const std::string prefix = cat("agent", i, ".");
      Args own = args_below(args, prefix);
      const std::string own_family = own["family"];
      if (own_family == "product" || own_family == "controlled") {
        fail(ErrorKind::kBadFile, cat(where, ": a ", own_family, " model inside a product"));
      }
      own.erase("family");
      agents.push_back(build(own_family, tensors_below(tensors, prefix), own, runtime, where));
    }
    return std::make_unique<ProductModel>(std::move(agents));
  }
  if (family == "controlled") {
    Args base_args = args_below(args, "base.");
    const std::string base_family = base_args["family"];
    if (base_family == "controlled") {
      fail(ErrorKind::kBadFile, cat(where, ": a controlled model inside a controlled model"));
    }
    base_args.erase("family");
    const auto path = args.find("path");
    if (path == args.end()) {
      fail(ErrorKind::kBadFile, cat(where, ": a controlled model without its path"));
    }
    std::shared_ptr<const VelocityModel> base =
        build(base_family, tensors_below(tensors, "base."), base_args, runtime, where);
    const ControlConfig config = control_config_from_args(args);
    const ParameterSet control = tensors_below(tensors, "control.");
    require_fit(init_control(config, base->sample_shape(), base->classes(), RandomStreams(0)),
                control, where);
    return std::make_unique<ControlledModel>(std::move(base), make_path(path->second), config,
                                             control);
  }
  refuse_model(
      where, {tensors, {{"tiltflow.family", family}}}, "a velocity model",
      "velocity models: " + join(velocity_model_families(), ", ") + "; see `tiltflow inspect`");
}

// DiT and SiT have the same tensors; when nothing but the name speaks, it is said.
void warn_of_dit(const std::filesystem::path& path, const StatedIdentity& stated) {
  const std::string name = path.filename().string();
  if (stated.args.count("model") || name.find("DiT") == std::string::npos ||
      name.find("SiT") != std::string::npos) {
    return;
  }
  log_warn(cat(path.string(),
               ": named like a DiT, whose tensors are those of a SiT; a DiT predicts noise at 1000 "
               "discrete times and is not sampled correctly here"));
}

std::string with_article(const std::string& found) {
  if (starts_with(found, "a ") || starts_with(found, "an ")) return found;
  return cat(std::string_view("AEIOUaeiou").find(found[0]) == std::string_view::npos ? "a " : "an ",
             found);
}

}  // namespace

Args metadata_args(const Args& metadata, const std::string& where) {
  const auto found = metadata.find("tiltflow.args");
  if (found == metadata.end()) return {};
  try {
    return nlohmann::json::parse(found->second).get<Args>();
  } catch (const nlohmann::json::exception&) {
    fail(ErrorKind::kBadFile,
         cat(where, ": metadata entry tiltflow.args is not an object of strings"));
  }
}

Args model_metadata(Args metadata, const ModelSpec& spec) {
  metadata["format"] = "pt";
  metadata["tiltflow.family"] = spec.family;
  metadata["tiltflow.args"] = nlohmann::json(spec.args).dump();
  return metadata;
}

std::string model_family(const ParameterSet& tensors, const Args& metadata) {
  if (const auto found = metadata.find("tiltflow.family"); found != metadata.end()) {
    return found->second;
  }
  if (const std::string relative = foreign_sit(tensors); !relative.empty()) return relative;
  if (looks_like_sit(tensors)) return "sit";
  if (const std::string generator = generator_family(tensors, metadata); !generator.empty()) {
    return generator;
  }
  const auto has = [&](const char* name) { return tensors.contains(name); };
  if (has("encoder.conv_in.weight") && has("decoder.conv_in.weight")) return "AutoencoderKL";
  if (has("encoder.layers.0.weight") && has("decoder.layers.0.weight")) return "AutoencoderTiny";
  if (has("vision_model.embeddings.class_embedding") || has("visual.class_embedding")) {
    return "CLIP";
  }
  if (has("layers.0.weight") && has("layers.7.bias") && !has("layers.1.weight")) {
    return "aesthetic head";
  }
  if (tensors.contains("conv3.weight") && tensors.contains("fc2.weight")) return "classifier";
  return foreign_model(tensors);
}

namespace {

// A SiT under a name of its own beside other modules (a loss, metrics, an autoencoder): "net", or
// "" when there is none.
std::string sit_beside_others(const ParameterSet& tensors) {
  constexpr std::string_view kSign = ".x_embedder.proj.weight";
  for (const auto& [name, tensor] : tensors) {
    const bool found = ends_with(name, kSign) && name.find('.') == name.size() - kSign.size();
    if (found) return name.substr(0, name.find('.'));
  }
  return "";
}

}  // namespace

void refuse_model(const std::filesystem::path& path, const TensorFile& file,
                  const std::string& wanted, const std::string& hint) {
  if (const std::string part = sit_beside_others(file.tensors); !part.empty()) {
    fail(ErrorKind::kBadFile,
         cat(path.string(), ": a SiT lies under '", part, ".' beside other tensors"),
         cat("take it alone: --weights ", part, " (model.weights)"));
  }
  std::string found = model_family(file.tensors, file.metadata);
  if (found.empty()) found = configured_class(path);
  if (found.empty()) {
    fail(ErrorKind::kBadFile,
         cat(path.string(), ": not a model tiltflow knows; ", wanted, " is expected"), hint);
  }
  fail(ErrorKind::kBadFile, cat(path.string(), ": holds ", with_article(found), ", not ", wanted),
       hint);
}

const std::vector<std::string>& velocity_model_families() {
  static const std::vector<std::string> families{"sit", "mlp", "controlled", "gaussian-mixture",
                                                 "product"};
  return families;
}

LoadedModel load_velocity_model(const std::filesystem::path& path, const Args& overrides,
                                ModelRuntime runtime, at::ScalarType dtype,
                                const std::string& section) {
  const std::string where = path.string();
  TensorFile file = read_tensors(path, section);
  const std::string family = model_family(file.tensors, file.metadata);
  if (family.empty()) {
    refuse_model(
        path, file, "a velocity model",
        "velocity models: " + join(velocity_model_families(), ", ") + "; see `tiltflow inspect`");
  }
  const StatedIdentity stated = stated_identity(file.metadata);
  Args args;
  for (const auto& [name, said] : constructor_arguments(file, family, stated, overrides, where)) {
    args[name] = said.value;
  }
  if (family == "sit") warn_of_dit(path, stated);
  LoadedModel out;
  const ParameterSet tensors = cast(file.tensors, dtype);
  for (const auto& [name, tensor] : tensors) {
    require_finite(tensor, cat(where, ": tensor '", name, "'"));
  }
  out.model = build(family, tensors, args, runtime, where);
  out.path = stated.path;
  out.prediction = stated.prediction;
  out.metadata = std::move(file.metadata);
  return out;
}

std::unique_ptr<VelocityModel> create_velocity_model(const ModelSpec& spec, std::uint64_t seed,
                                                     ModelRuntime runtime) {
  const RandomStreams streams(seed);
  if (spec.family == "sit") {
    const SitConfig config = sit_config_from_args(spec.args);
    return make_sit(config, to_compute_device(init_sit(config, streams)), {}, runtime);
  }
  if (spec.family == "mlp") {
    const MlpConfig config = mlp_config_from_args(spec.args);
    return make_mlp(config, to_compute_device(init_mlp(config, streams)), {}, runtime);
  }
  if (spec.family == "gaussian-mixture") {
    Args args = spec.args;
    const std::string path = args.contains("path") ? args["path"] : "linear";
    args.erase("path");
    return std::make_unique<MixtureModel>(mixture_from_args(args), make_path(path));
  }
  fail(ErrorKind::kConfig,
       cat("model family '", spec.family, "' is unknown",
           did_you_mean(spec.family, velocity_model_families())),
       "known: " + join(velocity_model_families(), ", "));
}

void save_velocity_model(const std::filesystem::path& path, const VelocityModel& model,
                         const ParameterSet& parameters, Args metadata) {
  write_safetensors(path, parameters, model_metadata(std::move(metadata), model.spec()));
}

std::shared_ptr<const Classifier> load_classifier(const std::filesystem::path& path) {
  TensorFile file = read_tensors(path);
  if (model_family(file.tensors, file.metadata) != "classifier") {
    refuse_model(path, file, "a classifier",
                 "train one with `tiltflow pretrain` and kind = \"classifier\"");
  }
  const ClassifierConfig config =
      classifier_config_from_args(metadata_args(file.metadata, path.string()));
  return std::make_shared<Classifier>(config, cast(file.tensors, at::kFloat));
}

void save_classifier(const std::filesystem::path& path, const ClassifierConfig& config,
                     const ParameterSet& parameters, Args metadata) {
  write_safetensors(path, parameters,
                    model_metadata(std::move(metadata), {"classifier", to_args(config)}));
}

}  // namespace tiltflow
