#include "tiltflow/models/product/product_model.h"

#include <algorithm>
#include <cstdlib>

#include "tiltflow/base/error.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/tensor/aten.h"

namespace tiltflow {
namespace {

std::string prefix(std::size_t i) { return cat("agent", i, "."); }

}  // namespace

ProductModel::ProductModel(std::vector<std::shared_ptr<const VelocityModel>> agents)
    : agents_(std::move(agents)) {
  if (agents_.empty()) fail(ErrorKind::kConfig, "a product of no models");
  spec_ = {"product", {{"agents", cat(agents_.size())}}};
  for (std::size_t i = 0; i < agents_.size(); ++i) {
    const VelocityModel& agent = *agents_[i];
    if (agent.spec().family == "product") {
      fail(ErrorKind::kConfig, "a product of products: name all models in one list");
    }
    if (agent.sample_shape() != agents_[0]->sample_shape()) {
      fail(ErrorKind::kConfig,
           cat("model.agents: the first makes ", shape_text(agents_[0]->sample_shape()),
               ", number ", i + 1, " makes ", shape_text(agent.sample_shape())));
    }
    if (agent.classes() != agents_[0]->classes()) {
      fail(ErrorKind::kConfig, cat("model.agents: the first has ", agents_[0]->classes(),
                                   " classes, number ", i + 1, " has ", agent.classes()));
    }
    spec_.args[prefix(i) + "family"] = agent.spec().family;
    for (const auto& [key, value] : agent.spec().args) spec_.args[prefix(i) + key] = value;
    for (const auto& [name, tensor] : agent.parameters()) parameters_.add(prefix(i) + name, tensor);
  }
}

at::Tensor ProductModel::velocity(const at::Tensor& x, const at::Tensor& t,
                                  const Condition& condition) const {
  std::vector<at::Tensor> parts = x.chunk(agents(), 1);
  for (std::size_t i = 0; i < parts.size(); ++i) {
    parts[i] = agents_[i]->velocity(parts[i].contiguous(), t, condition);
  }
  return at::cat(parts, 1);
}

std::vector<std::int64_t> ProductModel::sample_shape() const {
  std::vector<std::int64_t> shape = agents_[0]->sample_shape();
  shape[0] *= agents();
  return shape;
}

std::vector<std::string> ProductModel::linear_layers() const {
  std::vector<std::string> out;
  for (std::size_t i = 0; i < agents_.size(); ++i) {
    for (const std::string& name : agents_[i]->linear_layers()) out.push_back(prefix(i) + name);
  }
  return out;
}

bool ProductModel::is_buffer(const std::string& name) const {
  for (std::size_t i = 0; i < agents_.size(); ++i) {
    if (starts_with(name, prefix(i))) return agents_[i]->is_buffer(name.substr(prefix(i).size()));
  }
  return false;
}

std::unique_ptr<VelocityModel> ProductModel::rebind(ParameterSet parameters,
                                                    AdapterSet adapters) const {
  std::vector<std::shared_ptr<const VelocityModel>> out;
  for (std::size_t i = 0; i < agents_.size(); ++i) {
    AdapterSet own;
    for (const auto& [name, adapter] : adapters) {
      if (starts_with(name, prefix(i))) own[name.substr(prefix(i).size())] = adapter;
    }
    out.push_back(agents_[i]->rebind(tensors_below(parameters, prefix(i)), std::move(own)));
  }
  return std::make_unique<ProductModel>(std::move(out));
}

const std::vector<std::string>& aggregates() {
  static const std::vector<std::string> names{"mean", "sum", "max"};
  return names;
}

at::Tensor aggregated(const at::Tensor& states, std::int64_t agents, const std::string& how) {
  if (agents == 1) return states;
  const at::Tensor stacked = at::stack(states.chunk(agents, 1));
  return how == "sum" ? stacked.sum(0) : how == "max" ? stacked.amax(0) : stacked.mean(0);
}

std::int64_t agents_of(const ModelSpec& spec) {
  const std::string at_front = spec.family == "controlled" ? "base." : "";
  const auto family = spec.args.find("base.family");
  const auto count = spec.args.find(at_front + "agents");
  const bool product =
      spec.family == "product" ||
      (spec.family == "controlled" && family != spec.args.end() && family->second == "product");
  return product && count != spec.args.end() ? std::atoll(count->second.c_str()) : 1;
}

}  // namespace tiltflow
