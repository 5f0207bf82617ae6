#include "tiltflow/tensor/parameters.h"

#include "tiltflow/base/error.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/tensor/aten.h"

namespace tiltflow {

void ParameterSet::add(std::string name, at::Tensor tensor) {
  if (!index_.emplace(name, items_.size()).second) {
    fail(ErrorKind::kFailure, cat("tensor '", name, "' was added twice"));
  }
  items_.emplace_back(std::move(name), std::move(tensor));
}

const at::Tensor& ParameterSet::at(const std::string& name) const {
  const auto found = index_.find(name);
  if (found == index_.end()) {
    fail(ErrorKind::kBadFile, cat("tensor '", name, "' is missing", did_you_mean(name, names())));
  }
  return items_[found->second].second;
}

std::vector<std::string> ParameterSet::names() const {
  std::vector<std::string> out;
  for (const auto& [name, tensor] : items_) out.push_back(name);
  return out;
}

std::vector<at::Tensor> ParameterSet::tensors() const {
  std::vector<at::Tensor> out;
  for (const auto& [name, tensor] : items_) out.push_back(tensor);
  return out;
}

std::int64_t ParameterSet::numel() const {
  std::int64_t total = 0;
  for (const auto& [name, tensor] : items_) total += tensor.numel();
  return total;
}

double ParameterSet::bytes() const {
  double total = 0;
  for (const auto& [name, tensor] : items_) total += static_cast<double>(tensor.nbytes());
  return total;
}

ParameterSet clone(const ParameterSet& source, bool requires_grad) {
  ParameterSet out;
  for (const auto& [name, tensor] : source) {
    at::Tensor copy = tensor.detach().clone();
    if (requires_grad && copy.is_floating_point()) copy.set_requires_grad(true);
    out.add(name, copy);
  }
  return out;
}

std::string shape_text(at::IntArrayRef shape) {
  std::vector<std::string> parts;
  for (const std::int64_t n : shape) parts.push_back(std::to_string(n));
  return "[" + join(parts, ", ") + "]";
}

void require_fit(const ParameterSet& target, const ParameterSet& source, const std::string& what) {
  std::vector<std::string> problems;
  for (const auto& [name, tensor] : target) {
    if (!source.contains(name)) {
      problems.push_back(cat("missing: ", name, " ", shape_text(tensor.sizes())));
    } else if (source.at(name).sizes() != tensor.sizes()) {
      problems.push_back(cat("shape of ", name, ": expected ", shape_text(tensor.sizes()),
                             ", found ", shape_text(source.at(name).sizes())));
    }
  }
  for (const auto& [name, tensor] : source) {
    if (!target.contains(name)) {
      problems.push_back(cat("unexpected: ", name, " ", shape_text(tensor.sizes())));
    }
  }
  if (!problems.empty()) {
    const std::size_t shown = std::min<std::size_t>(problems.size(), 12);
    std::string list =
        join({problems.begin(), problems.begin() + static_cast<std::ptrdiff_t>(shown)}, "\n  ");
    if (shown < problems.size()) list += cat("\n  ... and ", problems.size() - shown, " more");
    fail(ErrorKind::kBadFile, cat(what, " does not fit the model:\n  ", list));
  }
}

void assign(const ParameterSet& target, const ParameterSet& source, const std::string& what) {
  require_fit(target, source, what);
  const at::NoGradGuard no_grad;
  for (const auto& [name, tensor] : target) {
    at::Tensor destination = tensor;
    destination.copy_(source.at(name));
  }
}

std::map<std::string, std::string> args_below(const std::map<std::string, std::string>& args,
                                              const std::string& prefix) {
  std::map<std::string, std::string> out;
  for (const auto& [key, value] : args) {
    if (starts_with(key, prefix)) out[key.substr(prefix.size())] = value;
  }
  return out;
}

ParameterSet tensors_below(const ParameterSet& tensors, const std::string& prefix) {
  ParameterSet out;
  for (const auto& [name, tensor] : tensors) {
    if (starts_with(name, prefix)) out.add(name.substr(prefix.size()), tensor);
  }
  return out;
}

}  // namespace tiltflow
