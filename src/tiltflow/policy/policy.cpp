#include "tiltflow/policy/policy.h"

#include <algorithm>
#include <cmath>

#include "tiltflow/base/error.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/nn/init.h"
#include "tiltflow/policy/lora.h"
#include "tiltflow/sampler/fields.h"
#include "tiltflow/tensor/aten.h"

namespace tiltflow {
namespace {

ParameterSet without_buffers(const VelocityModel& model, const ParameterSet& parameters) {
  ParameterSet out;
  for (const auto& [name, tensor] : parameters) if (!model.is_buffer(name)) out.add(name, tensor);
  return out;
}

ParameterSet frozen(const ParameterSet& parameters) {
  ParameterSet out;
  for (const auto& [name, tensor] : parameters) out.add(name, tensor.detach());
  return out;
}

}  // namespace

void bind(Fields& f, PolicyConfig& c) {
  f.value("kind", c.kind, "full (every weight) or lora (low-rank adapters on a shared, frozen base)", one_of({"full", "lora"}));
  f.value("rank", c.rank, "lora: rank", at_least_integer(1));
  f.value("alpha", c.alpha, "lora: the adapter is scaled by alpha / rank", positive());
  f.value("targets", c.targets, "lora: patterns of layer names ('*' and '?')");
}

Policy full_policy(const VelocityModel& model) {
  ParameterSet copy = clone(model.parameters(), true);
  for (const auto& [name, tensor] : copy) if (model.is_buffer(name)) tensor.requires_grad_(false);
  Policy policy;
  policy.base = model.rebind(frozen(model.parameters()), {});
  policy.trainable = without_buffers(model, copy);
  policy.tuned = model.rebind(std::move(copy), {});
  policy.backward_cost = 2;
  return policy;
}

Policy lora_policy(const VelocityModel& model, const PolicyConfig& config, const RandomStreams& streams) {
  Policy policy;
  AdapterSet adapters;
  for (const std::string& layer : model.linear_layers()) {
    if (std::none_of(config.targets.begin(), config.targets.end(), [&](const std::string& p) { return matches_pattern(layer, p); })) continue;
    const at::Tensor& weight = model.parameters().at(layer + ".weight");
    const std::int64_t out = weight.size(0), in = weight.size(1);
    at::Tensor a = fan_in_uniform(streams, layer + ".lora_A", {config.rank, in}, in).to(weight.options()).set_requires_grad(true);
    at::Tensor b = at::zeros({out, config.rank}, weight.options().requires_grad(false)).set_requires_grad(true);
    policy.trainable.add(layer + ".lora_A.weight", a);
    policy.trainable.add(layer + ".lora_B.weight", b);
    adapters[layer] = {a, b, config.alpha / static_cast<double>(config.rank)};
  }
  if (adapters.empty()) fail(ErrorKind::kConfig, cat("policy.targets match no layer: ", join(config.targets, ", ")), cat("layers are named like ", model.linear_layers().front(), ", ", model.linear_layers()[std::min<std::size_t>(2, model.linear_layers().size() - 1)]));
  const ParameterSet weights = frozen(model.parameters());  // one copy, shared
  policy.base = model.rebind(weights, {});
  policy.tuned = model.rebind(weights, std::move(adapters));
  policy.backward_cost = 1;
  return policy;
}

Policy make_policy(const VelocityModel& model, const PolicyConfig& config, std::uint64_t seed) {
  return config.kind == "lora" ? lora_policy(model, config, RandomStreams(seed)) : full_policy(model);
}

ParameterSet merged_weights(const VelocityModel& model, const PolicyConfig& config, const ParameterSet& trained, double strength) {
  if (config.kind == "lora") return merge_adapters(model.parameters(), adapters_from(trained, strength * config.alpha / static_cast<double>(config.rank)));
  const at::NoGradGuard no_grad;
  ParameterSet out;
  for (const auto& [name, tensor] : model.parameters()) {
    const at::Tensor end = trained.contains(name) ? trained.at(name).detach() : tensor;
    out.add(name, strength == 1 ? end : at::lerp(tensor.detach(), end, strength));
  }
  return out;
}

Policy side_policy(std::shared_ptr<const VelocityField> base, const VelocityModel& side, std::function<double(double)> gain) {
  Policy policy;
  ParameterSet copy = clone(side.parameters(), true);
  policy.trainable = without_buffers(side, copy);
  policy.base = base;
  policy.tuned = std::make_shared<SumField>(base, side.rebind(std::move(copy), {}), std::move(gain));
  return policy;
}

}  // namespace tiltflow
