// Several models side by side as one: the state is all their states, each moves by its own
// velocity, and a policy on top (a control network, adapters, all weights) steers them together. A
// reward sees an aggregate of the parts, so p* couples what was independent (CMAD, arXiv
// 2602.10933). Parts have one shape, one path and one set of classes; their states are stacked
// along the first dimension, tensors are named agent0.*, agent1.*, ...
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "tiltflow/models/velocity_model.h"

namespace tiltflow {

class ProductModel final : public VelocityModel {
 public:
  // Throws kConfig for no agents, other shapes, other classes.
  explicit ProductModel(std::vector<std::shared_ptr<const VelocityModel>> agents);
  at::Tensor velocity(const at::Tensor& x, const at::Tensor& t,
                      const Condition& condition) const override;
  const ModelSpec& spec() const override { return spec_; }
  const ParameterSet& parameters() const override { return parameters_; }
  std::vector<std::int64_t> sample_shape() const override;
  std::int64_t classes() const override { return agents_[0]->classes(); }
  std::vector<std::string> linear_layers() const override;
  bool is_buffer(const std::string& name) const override;
  std::unique_ptr<VelocityModel> rebind(ParameterSet parameters,
                                        AdapterSet adapters) const override;
  std::int64_t agents() const { return static_cast<std::int64_t>(agents_.size()); }

 private:
  std::vector<std::shared_ptr<const VelocityModel>> agents_;
  ModelSpec spec_;
  ParameterSet parameters_;
};

// States of a product of `agents` models -> what rewards decode: mean, sum or max over the agents.
at::Tensor aggregated(const at::Tensor& states, std::int64_t agents, const std::string& how);
const std::vector<std::string>& aggregates();
// How many agents a model's states hold: 1 for all but products, control networks beside them
// included.
std::int64_t agents_of(const ModelSpec& spec);

}  // namespace tiltflow
