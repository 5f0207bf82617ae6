// A frozen velocity model with a control network beside it:
//   v(x, t) = v_base(x, t) + gain(t) u(x, t),   gain = PathPoint::control_gain,
// so that u has one size at all times; of kind potential v = v_base + beta D grad N, the velocity
// of a value function alpha N (eta alpha = beta D). One file holds both: names "base.*" and
// "control.*", family "controlled".
#pragma once

#include <memory>

#include "tiltflow/flow/path.h"
#include "tiltflow/models/control/control_net.h"
#include "tiltflow/models/velocity_model.h"

namespace tiltflow {

class ControlledModel final : public VelocityModel {
 public:
  ControlledModel(std::shared_ptr<const VelocityModel> base, std::shared_ptr<const Path> path,
                  ControlConfig config, ParameterSet control);
  at::Tensor velocity(const at::Tensor& x, const at::Tensor& t,
                      const Condition& condition) const override;
  const ModelSpec& spec() const override { return spec_; }
  const ParameterSet& parameters() const override { return parameters_; }
  std::vector<std::int64_t> sample_shape() const override { return base_->sample_shape(); }
  std::int64_t classes() const override { return base_->classes(); }
  std::vector<std::string> linear_layers() const override { return {}; }
  bool is_buffer(const std::string& name) const override;
  std::unique_ptr<VelocityModel> rebind(ParameterSet parameters,
                                        AdapterSet adapters) const override;
  // alpha N, [n]: the value function less a constant. Of kind potential only.
  at::Tensor log_value(const at::Tensor& x, const at::Tensor& t, const Condition& condition) const;
  const VelocityModel& base() const { return *base_; }

 private:
  std::shared_ptr<const VelocityModel> base_;
  std::shared_ptr<const Path> path_;
  ControlConfig config_;
  ParameterSet control_, parameters_;
  ModelSpec spec_;
};

// Arguments "base.family", "base.ARG", "path", "control.kind", ... of a controlled model's spec.
// Throws kConfig.
ControlConfig control_config_from_args(const std::map<std::string, std::string>& args);

}  // namespace tiltflow
