#include "tiltflow/sampler/fields.h"

#include "tiltflow/base/error.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/tensor/aten.h"

namespace tiltflow {

void bind(Fields& f, Guidance& c) {
  f.value("scale", c.scale, "classifier-free guidance scale; 1 = none");
  f.value("channels", c.channels, "guide only the first so many channels (SiT: 3); 0 = all",
          at_least_integer(0));
  f.value("begin", c.begin, "guidance acts from this time on (0 is noise)", between(0, 1));
  f.value("end", c.end, "and until this time", between(0, 1));
}

GuidedField::GuidedField(std::shared_ptr<const VelocityField> field, const Guidance& guidance,
                         std::int64_t null_label)
    : field_(std::move(field)), guidance_(guidance), null_label_(null_label) {
  if (!(guidance.begin < guidance.end)) {
    fail(ErrorKind::kConfig, cat("guidance acts from t = ", guidance.begin, " to ", guidance.end,
                                 ": an empty interval"));
  }
}

at::Tensor GuidedField::velocity(const at::Tensor& x, const at::Tensor& t,
                                 const Condition& condition) const {
  if (!condition.labels.defined()) {
    fail(ErrorKind::kConfig, "guidance needs labels", "choose a label, or guidance 1");
  }
  const bool whole = guidance_.begin <= 0 && guidance_.end >= 1;
  at::Tensor inside;  // [N], undefined = everywhere
  if (!whole) {
    inside = (t >= guidance_.begin).logical_and(t <= guidance_.end);
    if (!inside.any().item<bool>()) return field_->velocity(x, t, condition);
  }
  const at::Tensor both =
      field_->velocity(at::cat({x, x}), at::cat({t, t}),
                       {at::cat({condition.labels, at::full_like(condition.labels, null_label_)})});
  const std::vector<at::Tensor> v = both.chunk(2);
  at::Tensor out = v[1] + (v[0] - v[1]) * guidance_.scale;
  if (guidance_.channels > 0 && guidance_.channels < x.size(1)) {
    out = at::cat({out.narrow(1, 0, guidance_.channels),
                   v[0].narrow(1, guidance_.channels, x.size(1) - guidance_.channels)},
                  1);
  }
  if (whole || inside.all().item<bool>()) return out;
  std::vector<std::int64_t> shape(static_cast<std::size_t>(x.dim()), 1);
  shape[0] = x.size(0);
  return at::where(inside.expand({x.size(0)}).reshape(shape), out, v[0]);
}

std::shared_ptr<const VelocityField> guided(std::shared_ptr<const VelocityField> field,
                                            const Guidance& guidance, std::int64_t classes) {
  if (!guidance.active()) return field;
  if (classes < 1) {
    fail(ErrorKind::kConfig, "guidance needs a class-conditional model", "use guidance scale 1");
  }
  return std::make_shared<GuidedField>(std::move(field), guidance, classes);
}

at::Tensor SumField::velocity(const at::Tensor& x, const at::Tensor& t,
                              const Condition& condition) const {
  const at::Tensor gain = path_coefficient(path_points(*path_, t), &PathPoint::control_gain, x);
  return base_->velocity(x, t, condition) + side_->velocity(x, t, condition) * gain;
}

at::Tensor CountingField::velocity(const at::Tensor& x, const at::Tensor& t,
                                   const Condition& condition) const {
  count_ += x.size(0);
  return field_->velocity(x, t, condition);
}

Vjp CountingField::vjp_of(const at::Tensor& x, const at::Tensor& t, const Condition& condition,
                          const Cotangent& cotangent) const {
  count_ += 2 * x.size(0);
  return field_->vjp_of(x, t, condition, cotangent);
}

}  // namespace tiltflow
