#include "tiltflow/models/mixture/mixture_model.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>

#include "tiltflow/base/count.h"
#include "tiltflow/base/error.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/tensor/aten.h"

namespace tiltflow {
namespace {

constexpr std::size_t kMostNumbers = 1 << 20;

std::vector<double> numbers(const std::string& key, const std::string& text) {
  std::vector<double> out;
  const char* p = text.c_str();
  while (true) {
    while (*p == ' ' || *p == ',' || *p == '\t' || *p == '\n') ++p;
    if (!*p) break;
    char* end = nullptr;
    out.push_back(std::strtod(p, &end));
    if (end == p || !std::isfinite(out.back()) || out.size() > kMostNumbers) {
      fail(ErrorKind::kConfig,
           cat("mixture argument ", key, " = '", text.substr(0, 60), "': expected numbers"),
           "e.g. weights = \"0.4 0.6\", means = \"-1 0; 1 0\", deviations = \"0.5\"");
    }
    p = end;
  }
  return out;
}

}  // namespace

GaussianMixture mixture_from_args(const std::map<std::string, std::string>& args) {
  static const std::vector<std::string> kNames{"weights", "means", "deviations"};
  for (const auto& [key, value] : args) {
    if (std::find(kNames.begin(), kNames.end(), key) == kNames.end()) {
      fail(ErrorKind::kConfig,
           cat("a Gaussian mixture has no argument '", key, "'", did_you_mean(key, kNames)),
           "arguments: weights, means, deviations");
    }
  }
  const auto text = [&](const std::string& key) {
    const auto found = args.find(key);
    return found == args.end() ? std::string() : found->second;
  };
  std::vector<std::vector<double>> rows;
  for (const std::string& row : split(text("means"), ';')) rows.push_back(numbers("means", row));
  if (rows.empty() || rows[0].empty()) {
    fail(ErrorKind::kConfig, "a Gaussian mixture needs its means",
         "e.g. means = \"-1 0; 1 0\": one row a component");
  }
  const auto count = static_cast<std::int64_t>(rows.size());
  const auto dimension = static_cast<std::int64_t>(rows[0].size());
  std::vector<double> flat;
  for (const std::vector<double>& row : rows) {
    if (static_cast<std::int64_t>(row.size()) != dimension) {
      fail(ErrorKind::kConfig, "mixture argument means: its rows have different lengths");
    }
    flat.insert(flat.end(), row.begin(), row.end());
  }
  const auto one_each = [&](const std::string& key, double missing) {
    std::vector<double> values = numbers(key, text(key));
    if (values.empty()) values = {missing};
    if (values.size() == 1) values.assign(rows.size(), values[0]);
    if (values.size() != rows.size()) {
      fail(ErrorKind::kConfig, cat("mixture argument ", key, ": ", counted(values.size(), "number"),
                                   " for ", rows.size(), " components"));
    }
    for (const double v : values) {
      if (!(v > 0)) {
        fail(ErrorKind::kConfig, cat("mixture argument ", key, ": ", v, " is not positive"));
      }
    }
    return at::tensor(values, at::kDouble);
  };
  const at::Tensor weights = one_each("weights", 1);
  const at::Tensor deviations = one_each("deviations", 1);
  const at::Tensor covariances =
      at::eye(dimension, at::kDouble).unsqueeze(0) * deviations.square().view({-1, 1, 1});
  return {weights / weights.sum(), at::tensor(flat, at::kDouble).view({count, dimension}),
          covariances};
}

GaussianMixture mixture_from_tensors(const ParameterSet& tensors, const std::string& where) {
  for (const char* name : {"weights", "means", "covariances"}) {
    if (!tensors.contains(name)) {
      fail(ErrorKind::kBadFile, cat(where, ": a Gaussian mixture without ", name));
    }
  }
  const auto exact = [&](const char* name) {
    return tensors.at(name).to(at::kCPU, at::kDouble);
  };  // closed forms stay on the CPU
  const at::Tensor w = exact("weights");
  const at::Tensor s = exact("covariances");
  GaussianMixture out{w / w.sum(), exact("means"),
                      s.dim() == 3 && s.size(1) == s.size(2) ? (s + s.transpose(1, 2)) / 2 : s};
  try {
    validate(out);
  } catch (const Error& error) {
    fail(ErrorKind::kBadFile, cat(where, ": ", error.what()));
  }
  return out;
}

MixtureModel::MixtureModel(const GaussianMixture& mixture, std::shared_ptr<const Path> path)
    : path_(std::move(path)), field_(mixture, path_) {
  spec_ = {"gaussian-mixture", {{"path", path_->name()}}};
  parameters_.add("weights", mixture.weights);
  parameters_.add("means", mixture.means);
  parameters_.add("covariances", mixture.covariances);
}

std::unique_ptr<VelocityModel> MixtureModel::rebind(ParameterSet parameters,
                                                    AdapterSet adapters) const {
  if (!adapters.empty()) {
    fail(ErrorKind::kConfig, "adapters do not apply to a Gaussian mixture: it has no layers",
         "use policy.kind = \"control\"");
  }
  return std::make_unique<MixtureModel>(mixture_from_tensors(parameters, "mixture"), path_);
}

}  // namespace tiltflow
