#include "tiltflow/models/control/controlled_model.h"

#include <algorithm>
#include <cstdlib>

#include "tiltflow/base/error.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/tensor/aten.h"

namespace tiltflow {
namespace {
const std::string kBase = "base.";
const std::string kControl = "control.";
}  // namespace

ControlledModel::ControlledModel(std::shared_ptr<const VelocityModel> base,
                                 std::shared_ptr<const Path> path, ControlConfig config,
                                 ParameterSet control)
    : base_(std::move(base)),
      path_(std::move(path)),
      config_(std::move(config)),
      control_(std::move(control)) {
  spec_.family = "controlled";
  spec_.args[kBase + "family"] = base_->spec().family;
  for (const auto& [key, value] : base_->spec().args) spec_.args[kBase + key] = value;
  spec_.args["path"] = path_->name();
  spec_.args[kControl + "kind"] = config_.kind;
  spec_.args[kControl + "width"] = cat(config_.width);
  spec_.args[kControl + "depth"] = cat(config_.depth);
  for (const auto& [name, tensor] : base_->parameters()) parameters_.add(kBase + name, tensor);
  for (const auto& [name, tensor] : control_) parameters_.add(kControl + name, tensor);
}

at::Tensor ControlledModel::velocity(const at::Tensor& x, const at::Tensor& t,
                                     const Condition& condition) const {
  const std::vector<PathPoint> points = path_points(*path_, t);
  const at::Tensor gain = config_.kind == "potential"
                              ? path_coefficient(
                                    points, [](const PathPoint& p) { return p.beta_d; }, x)
                              : path_coefficient(points, &PathPoint::control_gain, x);
  return base_->velocity(x, t, condition) +
         control_output(config_, control_, x, t, condition) * gain;
}

at::Tensor ControlledModel::log_value(const at::Tensor& x, const at::Tensor& t,
                                      const Condition& condition) const {
  const at::Tensor alpha =
      path_coefficient(
          path_points(*path_, t), [](const PathPoint& p) { return p.alpha; }, x)
          .flatten();
  return control_potential(config_, control_, x, t, condition) * alpha;
}

bool ControlledModel::is_buffer(const std::string& name) const { return starts_with(name, kBase); }

std::unique_ptr<VelocityModel> ControlledModel::rebind(ParameterSet parameters,
                                                       AdapterSet adapters) const {
  if (!adapters.empty()) {
    fail(ErrorKind::kConfig, "adapters do not apply to a model with a control network");
  }
  return std::make_unique<ControlledModel>(base_->rebind(tensors_below(parameters, kBase), {}),
                                           path_, config_, tensors_below(parameters, kControl));
}

ControlConfig control_config_from_args(const std::map<std::string, std::string>& args) {
  ControlConfig out;
  for (const auto& [key, text] : args_below(args, kControl)) {
    const long long number = std::strtoll(text.c_str(), nullptr, 10);
    if (key == "kind") {
      out.kind = text;
    } else if ((key == "width" || key == "depth") && (number < 1 || number > (1 << 16))) {
      fail(ErrorKind::kConfig,
           cat("control.", key, " = '", text, "': expected a positive integer"));
    } else if (key == "width") {
      out.width = number;
    } else if (key == "depth") {
      out.depth = number;
    } else {
      fail(ErrorKind::kConfig, cat("a control network has no argument '", key, "'"));
    }
  }
  if (std::find(control_kinds().begin(), control_kinds().end(), out.kind) ==
      control_kinds().end()) {
    fail(ErrorKind::kConfig,
         cat("control kind '", out.kind, "' is unknown", did_you_mean(out.kind, control_kinds())),
         "known: " + join(control_kinds(), ", "));
  }
  return out;
}

}  // namespace tiltflow
