// A Gaussian mixture as a base model: its flow's velocity in closed form, nothing to train.
// Fine-tune it with policy.kind = "control"; what comes out can be compared with the exact tilted
// law. Tensors weights [M], means [M, d], covariances [M, d, d]; one standard normal component: a
// base for sampling unnormalised densities.
#pragma once

#include <map>
#include <memory>
#include <string>

#include "tiltflow/flow/gaussian_mixture.h"
#include "tiltflow/models/velocity_model.h"

namespace tiltflow {

// From text: weights "0.4 0.6" (made to sum to 1), means "-1 0; 1 0" (one row a component),
// deviations "0.5" or one per component. Missing weights: equal. Throws kConfig.
GaussianMixture mixture_from_args(const std::map<std::string, std::string>& args);
// The tensors of a file, checked. Throws kBadFile.
GaussianMixture mixture_from_tensors(const ParameterSet& tensors, const std::string& where);

class MixtureModel final : public VelocityModel {
 public:
  MixtureModel(const GaussianMixture& mixture, std::shared_ptr<const Path> path);
  at::Tensor velocity(const at::Tensor& x, const at::Tensor& t,
                      const Condition& condition) const override {
    return field_.velocity(x, t, condition);
  }
  Vjp vjp_of(const at::Tensor& x, const at::Tensor& t, const Condition& condition,
             const Cotangent& cotangent) const override {
    return field_.vjp_of(x, t, condition, cotangent);
  }
  const ModelSpec& spec() const override { return spec_; }
  const ParameterSet& parameters() const override { return parameters_; }
  std::vector<std::int64_t> sample_shape() const override { return {field_.mixture().dimension()}; }
  std::int64_t classes() const override { return 0; }
  std::vector<std::string> linear_layers() const override { return {}; }
  bool is_buffer(const std::string&) const override { return true; }
  std::unique_ptr<VelocityModel> rebind(ParameterSet parameters,
                                        AdapterSet adapters) const override;
  const GaussianMixture& mixture() const { return field_.mixture(); }

 private:
  std::shared_ptr<const Path> path_;
  MixtureField field_;
  ModelSpec spec_;
  ParameterSet parameters_;
};

}  // namespace tiltflow
