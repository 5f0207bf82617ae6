// tiltflow convert: model files from one format, type or set of weights to another; LoRA adapters merged on the way.
#include "tiltflow/base/count.h"
#include "tiltflow/base/error.h"
#include "tiltflow/base/log.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/io/tensor_file.h"
#include "tiltflow/io/torch_file.h"
#include "tiltflow/policy/lora.h"
#include "tiltflow/tensor/aten.h"
#include "options.h"
#include "verbs.h"

namespace tiltflow::app {
namespace {

struct ConvertOptions {
  std::string in, out, weights, dtype = "keep", lora;
  double strength = 1, shard_gb = 10;
};

ParameterSet cast(const ParameterSet& tensors, const std::string& dtype) {
  if (dtype == "keep") return tensors;
  const at::ScalarType type = dtype == "bf16" ? at::kBFloat16 : dtype == "fp16" ? at::kHalf : at::kFloat;
  ParameterSet out;
  for (const auto& [name, tensor] : tensors) {
    const at::Tensor changed = tensor.is_floating_point() ? tensor.to(type) : tensor;
    if (tensor.is_floating_point() && at::isfinite(tensor).all().item<bool>() && !at::isfinite(changed).all().item<bool>()) {
      fail(ErrorKind::kNonFinite, cat("tensor '", name, "' overflows in ", dtype), "use bf16 or fp32");
    }
    out.add(name, changed);
  }
  return out;
}

int convert(const ConvertOptions& o) {
  TensorFile file = read_tensors(o.in, o.weights);
  if (!o.lora.empty()) file.tensors = merge_adapters(file.tensors, read_adapters(o.lora, o.strength));
  const ParameterSet tensors = cast(file.tensors, o.dtype);
  if (ends_with(o.out, ".safetensors")) {
    write_safetensors(o.out, tensors, file.metadata);
  } else if (ends_with(o.out, ".safetensors.index.json")) {
    write_sharded_safetensors(o.out, tensors, o.shard_gb * 1e9, file.metadata);
  } else if (ends_with(o.out, ".pt") || ends_with(o.out, ".pth") || ends_with(o.out, ".ckpt") || ends_with(o.out, ".bin")) {
    write_torch_file(o.out, {{"", tensors}});
  } else {
    fail(ErrorKind::kUsage, cat(o.out, ": the name does not say which format"), "end it in .safetensors, .safetensors.index.json (shards), .pt, .pth, .ckpt or .bin");
  }
  log_info(cat("wrote ", o.out, ": ", counted(tensors.size(), "tensor"), ", ", format_bytes(tensors.bytes())));
  return 0;
}

}  // namespace

void add_convert(CLI::App& program, Action& action) {
  auto* verb = program.add_subcommand("convert", "rewrite a model file in another format or type; merge an adapter");
  auto o = std::make_shared<ConvertOptions>();
  verb->add_option("in", o->in, "safetensors, sharded safetensors (index.json) or PyTorch checkpoint")->required();
  verb->add_option("out", o->out, "the ending chooses the format: .safetensors, .safetensors.index.json, .pt, .pth, .ckpt, .bin")->required();
  add_weights_option(*verb, o->weights);
  verb->add_option("--dtype", o->dtype, "type of the floating-point tensors: keep, fp32, bf16 or fp16")->check(CLI::IsMember({"keep", "fp32", "bf16", "fp16"}))->capture_default_str();
  verb->add_option("--lora", o->lora, "adapter folder of a lora run or of PEFT, merged into the weights");
  verb->add_option("--lora-strength", o->strength, "0 = base, 1 = as trained")->capture_default_str();
  verb->add_option("--shard-gb", o->shard_gb, "largest shard, in 10^9 bytes")->check(CLI::PositiveNumber)->capture_default_str();
  verb->footer("Example:\n  tiltflow convert SiT-XL-2-256x256.pt sit.safetensors --weights ema --dtype bf16");
  verb->callback([=, &action] { action = [o] { return convert(*o); }; });
}

}  // namespace tiltflow::app
