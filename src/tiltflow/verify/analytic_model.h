// Analytic fields as a class-conditional velocity model without weights: what policies that need a
// model can be built on.
#pragma once

#include <memory>
#include <vector>

#include "tiltflow/models/velocity_model.h"

namespace tiltflow {

class AnalyticModel final : public VelocityModel {
 public:
  // One field per class and, last, the one for "no label".
  AnalyticModel(std::vector<std::shared_ptr<const VelocityField>> fields, std::int64_t dimension)
      : fields_(std::move(fields)), dimension_(dimension) {}
  at::Tensor velocity(const at::Tensor& x, const at::Tensor& t,
                      const Condition& condition) const override;
  const ModelSpec& spec() const override { return spec_; }
  const ParameterSet& parameters() const override { return none_; }
  std::vector<std::int64_t> sample_shape() const override { return {dimension_}; }
  std::int64_t classes() const override { return static_cast<std::int64_t>(fields_.size()) - 1; }
  std::vector<std::string> linear_layers() const override { return {}; }
  bool is_buffer(const std::string&) const override { return true; }
  std::unique_ptr<VelocityModel> rebind(ParameterSet, AdapterSet) const override {
    return std::make_unique<AnalyticModel>(fields_, dimension_);
  }

 private:
  std::vector<std::shared_ptr<const VelocityField>> fields_;
  std::int64_t dimension_;
  ModelSpec spec_{"analytic", {}};
  ParameterSet none_;
};

}  // namespace tiltflow
