#include "tiltflow/policy/policy.h"

#include <algorithm>
#include <cmath>

#include "tiltflow/base/error.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/models/control/controlled_model.h"
#include "tiltflow/nn/init.h"
#include "tiltflow/policy/lora.h"
#include "tiltflow/policy/start.h"
#include "tiltflow/sampler/fields.h"
#include "tiltflow/tensor/aten.h"
#include "tiltflow/tensor/device.h"

namespace tiltflow {
namespace {

ParameterSet without_buffers(const VelocityModel& model, const ParameterSet& parameters) {
  ParameterSet out;
  for (const auto& [name, tensor] : parameters) {
    if (!model.is_buffer(name)) out.add(name, tensor);
  }
  return out;
}

ParameterSet frozen(const ParameterSet& parameters) {
  ParameterSet out;
  for (const auto& [name, tensor] : parameters) out.add(name, tensor.detach());
  return out;
}

}  // namespace

void bind(Fields& f, ControlConfig& c) {
  f.value("kind", c.kind, "mlp, conv, lowrank or potential (the gradient of a scalar network)",
          one_of(control_kinds()));
  f.value("width", c.width, "hidden units, channels, or the rank of lowrank", at_least_integer(1));
  f.value("depth", c.depth, "hidden layers of mlp, conv and potential", at_least_integer(1));
}

void bind(Fields& f, PolicyConfig& c) {
  f.value("kind", c.kind,
          "full (weights themselves), lora (low-rank adapters) or control (a network beside the "
          "base); the base stays frozen",
          one_of({"full", "lora", "control"}));
  f.path("start", c.start, PathKind::kWeights,
         "what training starts from, an adapter (folder or file) or a model file of an earlier "
         "run; reward tilt, control cost and check stay with the base; empty = the base itself");
  f.value("trainable", c.trainable,
          "full: patterns of the tensors that may change ('*' and '?'), e.g. blocks.27.*");
  f.value("rank", c.rank, "lora: rank", at_least_integer(1));
  f.value("alpha", c.alpha, "lora: the adapter is scaled by alpha / rank", positive());
  f.value("targets", c.targets, "lora: patterns of layer names ('*' and '?')");
  f.section("control", c.control);
}

namespace {
bool trains(const VelocityModel& model, const std::string& name,
            const std::vector<std::string>& patterns) {
  return !model.is_buffer(name) &&
         std::any_of(patterns.begin(), patterns.end(),
                     [&](const std::string& p) { return matches_pattern(name, p); });
}
// Names with their numbers as '*', each once: "blocks.*.attn.qkv".
std::vector<std::string> kinds_of_names(const std::vector<std::string>& names) {
  std::vector<std::string> out;
  for (const std::string& name : names) {
    std::vector<std::string> parts = split(name, '.');
    for (std::string& part : parts) {
      if (!part.empty() &&
          std::all_of(part.begin(), part.end(), [](char c) { return c >= '0' && c <= '9'; })) {
        part = "*";
      }
    }
    const std::string kind = join(parts, ".");
    if (std::find(out.begin(), out.end(), kind) == out.end()) out.push_back(kind);
  }
  return out;
}

// A mistyped pattern beside good ones would train less than was meant.
void require_every_pattern_matches(const std::string& key, const std::vector<std::string>& patterns,
                                   const std::vector<std::string>& names) {
  for (const std::string& pattern : patterns) {
    if (std::any_of(names.begin(), names.end(),
                    [&](const std::string& name) { return matches_pattern(name, pattern); })) {
      continue;
    }
    const std::vector<std::string> kinds = kinds_of_names(names);
    fail(ErrorKind::kConfig,
         cat(key, ": '", pattern, "' matches nothing in this model", did_you_mean(pattern, kinds)),
         cat("there are: ", join(kinds, ", ")));
  }
}

std::vector<std::string> trainable_names(const VelocityModel& model) {
  std::vector<std::string> out;
  for (const auto& [name, tensor] : model.parameters()) {
    if (!model.is_buffer(name)) out.push_back(name);
  }
  return out;
}

[[noreturn]] void nothing_trains(const VelocityModel& model,
                                 const std::vector<std::string>& patterns) {
  if (std::all_of(model.parameters().begin(), model.parameters().end(),
                  [&](const auto& entry) { return model.is_buffer(entry.first); })) {
    fail(ErrorKind::kConfig,
         cat("a model of family ", model.spec().family, " has nothing to train"),
         "use policy.kind = \"control\"");
  }
  fail(ErrorKind::kConfig, cat("policy.trainable matches no tensor: ", join(patterns, ", ")),
       cat("tensors are named like ", model.parameters().names().back()));
}
}  // namespace

Policy full_policy(const VelocityModel& model, const std::vector<std::string>& trainable) {
  const ParameterSet base = frozen(model.parameters());
  ParameterSet weights;
  Policy policy;
  for (const auto& [name, tensor] : base) {
    const bool mine = trains(model, name, trainable);
    weights.add(name, mine ? tensor.clone().set_requires_grad(true) : tensor);
    if (mine) policy.trainable.add(name, weights.at(name));
  }
  if (policy.trainable.empty()) nothing_trains(model, trainable);
  require_every_pattern_matches("policy.trainable", trainable, trainable_names(model));
  policy.base = model.rebind(base, {});
  policy.tuned = model.rebind(std::move(weights), {});
  policy.backward_cost = 2;
  return policy;
}

Policy lora_policy(const VelocityModel& model, const PolicyConfig& config,
                   const RandomStreams& streams) {
  Policy policy;
  AdapterSet adapters;
  for (const std::string& layer : model.linear_layers()) {
    if (std::none_of(config.targets.begin(), config.targets.end(),
                     [&](const std::string& p) { return matches_pattern(layer, p); })) {
      continue;
    }
    const at::Tensor& weight = model.parameters().at(layer + ".weight");
    const std::int64_t out = weight.size(0);
    const std::int64_t in = weight.size(1);
    at::Tensor a = fan_in_uniform(streams, layer + ".lora_A", {config.rank, in}, in)
                       .to(weight.options())
                       .set_requires_grad(true);
    at::Tensor b = at::zeros({out, config.rank}, weight.options().requires_grad(false))
                       .set_requires_grad(true);
    policy.trainable.add(layer + ".lora_A.weight", a);
    policy.trainable.add(layer + ".lora_B.weight", b);
    adapters[layer] = {a, b, config.alpha / static_cast<double>(config.rank)};
  }
  if (model.linear_layers().empty()) {
    fail(ErrorKind::kConfig,
         cat("a model of family ", model.spec().family, " has no layers for adapters"),
         "use policy.kind = \"control\"");
  }
  if (adapters.empty()) {
    fail(ErrorKind::kConfig, cat("policy.targets match no layer: ", join(config.targets, ", ")),
         cat("layers are named like ", model.linear_layers().front(), ", ",
             model.linear_layers()[std::min<std::size_t>(2, model.linear_layers().size() - 1)]));
  }
  if (config.targets != PolicyConfig{}.targets) {
    require_every_pattern_matches("policy.targets", config.targets, model.linear_layers());
  }
  const ParameterSet weights = frozen(model.parameters());  // one copy, shared
  policy.base = model.rebind(weights, {});
  policy.tuned = model.rebind(weights, std::move(adapters));
  policy.backward_cost = 1;
  return policy;
}

Policy control_policy(std::shared_ptr<const VelocityModel> model, std::shared_ptr<const Path> path,
                      const ControlConfig& config, const RandomStreams& streams) {
  Policy policy;
  ParameterSet control = clone(
      to_compute_device(init_control(config, model->sample_shape(), model->classes(), streams)),
      true);
  for (const auto& [name, tensor] : control) policy.trainable.add("control." + name, tensor);
  policy.base = model->rebind(frozen(model->parameters()), {});
  const auto tuned = std::make_shared<ControlledModel>(
      model->rebind(frozen(model->parameters()), {}), std::move(path), config, std::move(control));
  policy.tuned = tuned;
  if (config.kind == "potential") {
    policy.log_value = [tuned](const at::Tensor& x, const at::Tensor& t, const Condition& c) {
      return tuned->log_value(x, t, c);
    };
  }
  policy.backward_cost = 1;
  return policy;
}

namespace {
void require_velocities(const FlowModel& flow) {
  if (flow.prediction != "velocity") {
    fail(ErrorKind::kConfig,
         cat("policy.kind = \"control\" adds to velocities, the network answers with ",
             flow.prediction),
         "use policy.kind full or lora");
  }
}
}  // namespace

namespace {
Policy fresh_policy(const FlowModel& flow, const PolicyConfig& config, std::uint64_t seed) {
  const RandomStreams streams(seed);
  if (config.kind == "lora") return lora_policy(*flow.model, config, streams);
  if (config.kind == "full") return full_policy(*flow.model, config.trainable);
  require_velocities(flow);
  return control_policy(flow.model, flow.path, config.control, streams);
}
}  // namespace

Policy make_policy(const FlowModel& flow, const PolicyConfig& config, std::uint64_t seed) {
  Policy policy = fresh_policy(flow, config, seed);
  if (!config.start.empty()) start_from(policy, flow, config);
  return policy;
}

double trainable_bytes(const FlowModel& flow, const PolicyConfig& config) {
  if (config.kind != "full") {
    return fresh_policy(flow, config, 0).trainable.bytes();  // shares the base's weights
  }
  double bytes = 0;
  for (const auto& [name, tensor] : flow.model->parameters()) {
    if (trains(*flow.model, name, config.trainable)) bytes += static_cast<double>(tensor.nbytes());
  }
  if (bytes == 0) nothing_trains(*flow.model, config.trainable);
  require_every_pattern_matches("policy.trainable", config.trainable, trainable_names(*flow.model));
  return bytes;
}

std::unique_ptr<VelocityModel> merged_model(const FlowModel& flow, const PolicyConfig& config,
                                            const ParameterSet& trained, double strength) {
  const VelocityModel& model = *flow.model;
  const at::NoGradGuard no_grad;
  if (config.kind == "lora") {
    return model.rebind(
        merge_adapters(
            model.parameters(),
            adapters_from(trained, strength * config.alpha / static_cast<double>(config.rank))),
        {});
  }
  if (config.kind == "control") {
    require_velocities(flow);
    const std::string prefix = "control.";
    const std::string last = config.control.kind == "lowrank" ? "up." : "output.";
    ParameterSet control;
    for (const auto& [name, tensor] : trained) {
      control.add(name.substr(prefix.size()),
                  starts_with(name, prefix + last) ? tensor.detach() * strength : tensor.detach());
    }
    return std::make_unique<ControlledModel>(model.rebind(model.parameters(), {}), flow.path,
                                             config.control, std::move(control));
  }
  ParameterSet out;
  for (const auto& [name, tensor] : model.parameters()) {
    const at::Tensor end = trained.contains(name) ? trained.at(name).detach() : tensor;
    out.add(name, strength == 1 ? end : at::lerp(tensor.detach(), end, strength));
  }
  return model.rebind(std::move(out), {});
}

Policy side_policy(std::shared_ptr<const VelocityField> base, const VelocityModel& side,
                   std::shared_ptr<const Path> path) {
  Policy policy;
  ParameterSet copy = clone(side.parameters(), true);
  policy.trainable = without_buffers(side, copy);
  policy.base = base;
  policy.tuned =
      std::make_shared<SumField>(base, side.rebind(std::move(copy), {}), std::move(path));
  return policy;
}

}  // namespace tiltflow
