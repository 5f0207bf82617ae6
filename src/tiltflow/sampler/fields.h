// Velocity fields made of other fields: classifier-free guidance, sums, and a counter of network
// evaluations.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <string>

#include "tiltflow/config/fields.h"
#include "tiltflow/flow/path.h"
#include "tiltflow/flow/velocity_field.h"

namespace tiltflow {

// Classifier-free guidance.
struct Guidance {
  double scale = 1;  // v_u + scale (v_c - v_u): 1 is the conditional field, 0 the unconditional one
  std::int64_t channels =
      0;  // only the first so many are guided, the others keep v_c (SiT guides 3 of 4); 0 = all
  double begin = 0;
  double end = 1;  // times in which guidance acts; elsewhere the conditional field
  bool active() const { return scale != 1; }
};
void bind(Fields& f, Guidance& c);

// `null_label` stands for "no label". Cost: two samples per sample, in one call, inside the
// interval; else one.
class GuidedField final : public VelocityField {
 public:
  // Throws kConfig when the interval is empty.
  GuidedField(std::shared_ptr<const VelocityField> field, const Guidance& guidance,
              std::int64_t null_label);
  at::Tensor velocity(const at::Tensor& x, const at::Tensor& t,
                      const Condition& condition) const override;

 private:
  std::shared_ptr<const VelocityField> field_;
  Guidance guidance_;
  std::int64_t null_label_;
};
// The field itself when guidance does nothing. Throws kConfig for a model without classes.
std::shared_ptr<const VelocityField> guided(std::shared_ptr<const VelocityField> field,
                                            const Guidance& guidance, std::int64_t classes);

// base + gain(t) side: a frozen field with a trainable network beside it. The side network is the
// control u itself (see PathPoint::control_gain), of one size at all times, instead of a velocity
// that must vanish towards t = 1.
class SumField final : public VelocityField {
 public:
  SumField(std::shared_ptr<const VelocityField> base, std::shared_ptr<const VelocityField> side,
           std::shared_ptr<const Path> path)
      : base_(std::move(base)), side_(std::move(side)), path_(std::move(path)) {}
  at::Tensor velocity(const at::Tensor& x, const at::Tensor& t,
                      const Condition& condition) const override;

 private:
  std::shared_ptr<const VelocityField> base_, side_;
  std::shared_ptr<const Path> path_;
};

// Counts per-sample network evaluations in units of one forward: velocity 1, vjp 2 (forward and
// input gradient).
class CountingField final : public VelocityField {
 public:
  explicit CountingField(std::shared_ptr<const VelocityField> field) : field_(std::move(field)) {}
  at::Tensor velocity(const at::Tensor& x, const at::Tensor& t,
                      const Condition& condition) const override;
  Vjp vjp_of(const at::Tensor& x, const at::Tensor& t, const Condition& condition,
             const Cotangent& cotangent) const override;
  std::int64_t count() const { return count_.load(); }
  void reset() const { count_ = 0; }

 private:
  std::shared_ptr<const VelocityField> field_;
  mutable std::atomic<std::int64_t> count_{0};
};

}  // namespace tiltflow
