#include "tiltflow/sampler/fields.h"

#include <algorithm>

#include "tiltflow/base/error.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/tensor/aten.h"

namespace tiltflow {

GuidedField::GuidedField(std::shared_ptr<const VelocityField> field, double scale, std::int64_t null_label)
    : field_(std::move(field)), scale_(scale), null_label_(null_label) {}

at::Tensor GuidedField::velocity(const at::Tensor& x, const at::Tensor& t, const Condition& condition) const {
  if (!condition.labels.defined()) fail(ErrorKind::kConfig, "guidance needs labels", "choose a label, or guidance 1");
  const at::Tensor both = field_->velocity(at::cat({x, x}), at::cat({t, t}), {at::cat({condition.labels, at::full_like(condition.labels, null_label_)})});
  const std::vector<at::Tensor> v = both.chunk(2);
  return v[1] + (v[0] - v[1]) * scale_;
}

at::Tensor SumField::velocity(const at::Tensor& x, const at::Tensor& t, const Condition& condition) const {
  const bool one_time = t.stride(0) == 0 || t.numel() == 1;
  const at::Tensor times = (one_time ? t.narrow(0, 0, 1) : t).to(at::kDouble).contiguous();
  std::vector<double> gains;
  for (std::int64_t i = 0; i < times.numel(); ++i) gains.push_back(gain_(times.data_ptr<double>()[i]));
  std::vector<std::int64_t> shape(static_cast<std::size_t>(x.dim()), 1);
  shape[0] = times.numel();
  const at::Tensor gain = at::tensor(gains, at::kDouble).to(x.scalar_type()).view(shape);
  return base_->velocity(x, t, condition) + side_->velocity(x, t, condition) * gain;
}

PredictionField::PredictionField(std::shared_ptr<const VelocityField> field, std::shared_ptr<const Path> path, const std::string& prediction)
    : field_(std::move(field)), path_(std::move(path)), prediction_(prediction) {
  const std::vector<std::string> known{"velocity", "noise", "score"};
  if (std::find(known.begin(), known.end(), prediction) == known.end()) fail(ErrorKind::kConfig, cat("prediction '", prediction, "' is unknown", did_you_mean(prediction, known)), "use velocity, noise or score");
}

at::Tensor PredictionField::velocity(const at::Tensor& x, const at::Tensor& t, const Condition& condition) const {
  const at::Tensor out = field_->velocity(x, t, condition);
  if (prediction_ == "velocity") return out;
  const std::vector<PathPoint> points = path_points(*path_, t);
  const auto convert = [&](const PathPoint& p, const at::Tensor& state, const at::Tensor& value) {
    return prediction_ == "noise" ? velocity_from_noise(p, state, value) : velocity_from_score(p, state, value);
  };
  if (points.size() == 1) return convert(points[0], x, out);
  std::vector<at::Tensor> rows;
  for (std::int64_t i = 0; i < x.size(0); ++i) rows.push_back(convert(points[static_cast<std::size_t>(i)], x[i], out[i]));
  return at::stack(rows);
}

at::Tensor CountingField::velocity(const at::Tensor& x, const at::Tensor& t, const Condition& condition) const {
  count_ += x.size(0);
  return field_->velocity(x, t, condition);
}

Vjp CountingField::vjp(const at::Tensor& x, const at::Tensor& t, const Condition& condition, const at::Tensor& cotangent) const {
  count_ += 2 * x.size(0);
  return field_->vjp(x, t, condition, cotangent);
}

}  // namespace tiltflow
