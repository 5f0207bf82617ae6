// tiltflow convert: model files from one format, type or set of weights to another; LoRA adapters
// merged on the way.
#include <algorithm>
#include <cmath>
#include <cstdlib>

#include "options.h"
#include "tiltflow/base/count.h"
#include "tiltflow/base/error.h"
#include "tiltflow/base/log.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/flow/path.h"
#include "tiltflow/flow/prediction.h"
#include "tiltflow/io/state_dict.h"
#include "tiltflow/io/tensor_file.h"
#include "tiltflow/io/torch_file.h"
#include "tiltflow/models/model_file.h"
#include "tiltflow/models/model_identity.h"
#include "tiltflow/policy/lora.h"
#include "tiltflow/tensor/aten.h"
#include "verbs.h"

namespace tiltflow::app {
namespace {

struct ConvertOptions {
  std::string in;
  std::string out;
  std::string weights;
  std::string dtype = "keep";
  std::string lora;
  std::string path;
  std::string prediction;
  std::vector<std::string> args;
  bool checkpoint = false;
  double strength = 1;
  double shard_gb = 10;
};

bool is_torch_name(const std::string& name) {
  return ends_with(name, ".pt") || ends_with(name, ".pth") || ends_with(name, ".ckpt") ||
         ends_with(name, ".bin");
}

ParameterSet cast(const ParameterSet& tensors, const std::string& dtype) {
  if (dtype == "keep") return tensors;
  const at::ScalarType type = dtype == "bf16"   ? at::kBFloat16
                              : dtype == "fp16" ? at::kHalf
                                                : at::kFloat;
  ParameterSet out;
  for (const auto& [name, tensor] : tensors) {
    const at::Tensor changed = tensor.is_floating_point() ? tensor.to(type) : tensor;
    if (tensor.is_floating_point() && at::isfinite(tensor).all().item<bool>() &&
        !at::isfinite(changed).all().item<bool>()) {
      fail(ErrorKind::kNonFinite, cat("tensor '", name, "' overflows in ", dtype),
           "use bf16 or fp32");
    }
    out.add(name, changed);
  }
  return out;
}

// What the user says about the file, over what the file says.
std::map<std::string, std::string> overrides_of(const ConvertOptions& o) {
  std::map<std::string, std::string> out = key_values(o.args);
  if (!o.path.empty()) out["path"] = o.path;
  if (!o.prediction.empty()) out["prediction"] = o.prediction;
  return out;
}

// The metadata of the new file: the same identity, in our words.
std::map<std::string, std::string> converted_metadata(const TensorFile& file,
                                                      const ConvertOptions& o) {
  const std::map<std::string, std::string> overrides = overrides_of(o);
  const std::vector<IdentityRow> identity = model_identity(file, overrides, o.in);
  if (identity.empty() && !overrides.empty()) {
    refuse_model(o.in, file, "a velocity model",
                 "--model-arg, --path and --prediction describe velocity models");
  }
  for (const IdentityRow& row : identity) {
    if (!row.problem.empty()) {
      fail(ErrorKind::kBadFile, cat(o.in, ": ", row.problem), cat("decide with --", row.name));
    }
  }
  return identity_metadata(file, identity);
}

PlainValue plain_value(const std::string& text) {
  if (text == "true" || text == "True") return true;
  if (text == "false" || text == "False") return false;
  char* end = nullptr;
  const long long whole = std::strtoll(text.c_str(), &end, 10);
  if (!text.empty() && *end == 0) return std::int64_t{whole};
  const double real = std::strtod(text.c_str(), &end);
  if (!text.empty() && *end == 0 && std::isfinite(real)) return real;
  return text;
}

// As the official trainer's `args` would say it: path_type, prediction and constructor arguments.
PlainDicts beside_tensors(const std::map<std::string, std::string>& metadata,
                          const std::string& where) {
  PlainDicts out;
  for (const auto& [key, text] : metadata) {
    out["metadata"][key] = text;
    if (starts_with(key, "args.")) out["args"][key.substr(5)] = plain_value(text);
  }
  const auto add = [&](const char* key, const char* name, const auto& spelled) {
    if (const auto found = metadata.find(key); found != metadata.end()) {
      out["args"][name] = spelled(found->second);
    }
  };
  add("tiltflow.path", "path_type", official_path_name);
  add("tiltflow.prediction", "prediction", [](const std::string& value) { return value; });
  for (const auto& [name, text] : metadata_args(metadata, where)) {
    out["args"][name] = plain_value(text);
  }
  return out;
}

void write_torch(const ConvertOptions& o, const ParameterSet& tensors,
                 const std::map<std::string, std::string>& metadata) {
  const PlainDicts beside = beside_tensors(metadata, o.in);
  const auto section = metadata.find("section");
  const bool raw = section != metadata.end() && !is_average(section->second);
  write_torch_file(o.out, {{!o.checkpoint ? "" : raw ? "model" : "ema", tensors}}, beside);
}

int convert(const ConvertOptions& o) {
  const bool torch = is_torch_name(o.out);
  if (o.checkpoint && !torch) {
    fail(ErrorKind::kUsage, "--checkpoint belongs to PyTorch files",
         "end the output in .pt, .pth, .ckpt or .bin");
  }
  TensorFile file = read_tensors(o.in, o.weights);
  if (file.tensors.empty()) {
    fail(ErrorKind::kBadFile, cat(o.in, ": holds no tensors"), "is it the file of a model?");
  }
  const std::map<std::string, std::string> metadata = converted_metadata(file, o);
  if (!o.lora.empty()) {
    file.tensors = merge_adapters(file.tensors, read_adapters(o.lora, o.strength));
  }
  const ParameterSet tensors = cast(file.tensors, o.dtype);
  if (ends_with(o.out, ".safetensors")) {
    write_safetensors(o.out, tensors, metadata);
  } else if (ends_with(o.out, ".safetensors.index.json")) {
    write_sharded_safetensors(o.out, tensors, o.shard_gb * 1e9, metadata);
  } else if (torch) {
    write_torch(o, tensors, metadata);
  } else {
    fail(ErrorKind::kUsage, cat(o.out, ": the name does not say which format"),
         "end it in .safetensors, .safetensors.index.json (shards), .pt, .pth, .ckpt or .bin");
  }
  log_info(cat("wrote ", o.out, ": ", counted(tensors.size(), "tensor"), ", ",
               format_bytes(tensors.bytes())));
  return 0;
}

}  // namespace

void add_convert(CLI::App& program, Action& action) {
  auto* verb = program.add_subcommand(
      "convert", "rewrite a model file in another format or type; merge an adapter");
  auto o = std::make_shared<ConvertOptions>();
  verb->add_option("in", o->in,
                   "safetensors, sharded safetensors (index.json) or PyTorch checkpoint")
      ->required();
  verb->add_option("out", o->out,
                   "the ending chooses the format: .safetensors, .safetensors.index.json, .pt, "
                   ".pth, .ckpt, .bin")
      ->required();
  add_weights_option(*verb, o->weights);
  add_model_arg_option(*verb, o->args);
  verb->add_option("--path", o->path, "interpolation path to store; default: what the file says")
      ->check(CLI::IsMember(path_names()));
  verb->add_option("--prediction", o->prediction,
                   "what the network predicts, to store; default: what the file says")
      ->check(CLI::IsMember(predictions()));
  verb->add_flag("--checkpoint", o->checkpoint,
                 "PyTorch files: as a trainer writes them, the tensors under 'ema' beside 'args'; "
                 "default: a state dict with attributes");
  verb->add_option("--dtype", o->dtype,
                   "type of the floating-point tensors: keep, fp32, bf16 or fp16")
      ->check(CLI::IsMember({"keep", "fp32", "bf16", "fp16"}))
      ->capture_default_str();
  verb->add_option("--lora", o->lora,
                   "adapter folder of a lora run or of PEFT, merged into the weights");
  verb->add_option("--lora-strength", o->strength, "0 = base, 1 = as trained")
      ->capture_default_str();
  verb->add_option("--shard-gb", o->shard_gb, "largest shard, in 10^9 bytes")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  verb->footer(
      "A PyTorch file is a state dict for torch.load(FILE, weights_only=True); what is known of "
      "the model is in its attributes args and metadata.\nExample:\n  tiltflow convert "
      "SiT-XL-2-256x256.pt sit.safetensors --weights ema --dtype bf16");
  verb->callback([=, &action] { action = [o] { return convert(*o); }; });
}

}  // namespace tiltflow::app
