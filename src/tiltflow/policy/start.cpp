#include "tiltflow/policy/start.h"

#include <algorithm>
#include <filesystem>

#include "tiltflow/base/error.h"
#include "tiltflow/base/log.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/io/tensor_file.h"
#include "tiltflow/models/model_file.h"
#include "tiltflow/policy/lora.h"
#include "tiltflow/tensor/aten.h"

namespace tiltflow {
namespace {

const std::string kFirst = ".lora_A.weight";
const std::string kSecond = ".lora_B.weight";

bool is_adapter(const std::filesystem::path& path) {
  if (std::filesystem::is_directory(path)) return true;
  const std::vector<std::string> names = read_tensors(path).tensors.names();
  return std::any_of(names.begin(), names.end(),
                     [](const std::string& name) { return ends_with(name, kFirst); });
}

void copy_into(const at::Tensor& target, const at::Tensor& values) {
  const at::NoGradGuard no_grad;
  target.copy_(values);
}

void start_lora(Policy& policy, const PolicyConfig& config) {
  if (!is_adapter(config.start)) {
    fail(ErrorKind::kConfig,
         cat("policy.start = ", config.start,
             ": whole weights, which policy.kind = \"lora\" cannot start from"),
         "give the adapter folder of that run, or use policy.kind = \"full\"");
  }
  const double own_scale = config.alpha / static_cast<double>(config.rank);
  for (const auto& [layer, adapter] : read_adapters(config.start, 1)) {
    if (!policy.trainable.contains(layer + kFirst)) {
      fail(ErrorKind::kConfig,
           cat("policy.start = ", config.start, ": it adapts ", layer,
               ", which policy.targets leaves out"),
           "add the layer to policy.targets");
    }
    if (adapter.a.size(0) != config.rank) {
      fail(ErrorKind::kConfig,
           cat("policy.start = ", config.start, ": its adapter of ", layer, " has rank ",
               adapter.a.size(0), ", policy.rank is ", config.rank),
           cat("set policy.rank = ", adapter.a.size(0)));
    }
    const at::Tensor& a = policy.trainable.at(layer + kFirst);
    const at::Tensor& b = policy.trainable.at(layer + kSecond);
    if (adapter.a.sizes() != a.sizes() || adapter.b.sizes() != b.sizes()) {
      fail(ErrorKind::kBadFile,
           cat(config.start, ": the adapter of ", layer, " is ", shape_text(adapter.a.sizes()),
               " and ", shape_text(adapter.b.sizes()), ", the layer takes ", shape_text(a.sizes()),
               " and ", shape_text(b.sizes())));
    }
    copy_into(a, adapter.a);
    copy_into(b, adapter.scale == own_scale ? adapter.b : adapter.b * (adapter.scale / own_scale));
  }
}

void start_full(Policy& policy, const FlowModel& flow, const PolicyConfig& config) {
  const VelocityModel& base = *flow.model;
  const ParameterSet start =
      is_adapter(config.start)
          ? merge_adapters(base.parameters(), read_adapters(config.start, 1))
          : load_velocity_model(config.start, base.spec().args).model->parameters();
  require_fit(base.parameters(), start, config.start);
  for (const auto& [name, tensor] : base.parameters()) {
    if (policy.trainable.contains(name)) {
      copy_into(policy.trainable.at(name), start.at(name));
    } else if (!base.is_buffer(name) && !at::equal(tensor, start.at(name))) {
      fail(ErrorKind::kConfig,
           cat("policy.start = ", config.start, ": it differs from the base in ", name,
               ", which policy.trainable leaves out"),
           "add the tensor to policy.trainable");
    }
  }
}

void start_control(Policy& policy, const FlowModel& flow, const PolicyConfig& config) {
  const auto model = load_velocity_model(config.start).model;
  if (model->spec().family != "controlled") {
    fail(ErrorKind::kConfig,
         cat("policy.start = ", config.start, ": a model of family ", model->spec().family,
             " has no control network"),
         "give the model.safetensors of a run with policy.kind = \"control\"");
  }
  const ParameterSet base = tensors_below(model->parameters(), "base.");
  require_fit(flow.model->parameters(), base, config.start);
  for (const auto& [name, tensor] : flow.model->parameters()) {
    if (!at::equal(tensor, base.at(name))) {
      fail(ErrorKind::kConfig,
           cat("policy.start = ", config.start, ": its control network belongs to another base (",
               name, " differs)"),
           "start from a run with the same model.file");
    }
  }
  ParameterSet control;
  for (const auto& [name, tensor] : model->parameters()) {
    if (starts_with(name, "control.")) control.add(name, tensor);
  }
  assign(policy.trainable, control, config.start);
}

}  // namespace

void start_from(Policy& policy, const FlowModel& flow, const PolicyConfig& config) {
  if (config.kind == "lora") {
    start_lora(policy, config);
  } else if (config.kind == "full") {
    start_full(policy, flow, config);
  } else {
    start_control(policy, flow, config);
  }
  log_info(cat("the policy starts from ", config.start));
}

}  // namespace tiltflow
