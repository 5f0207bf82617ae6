// Velocity fields made of other fields: classifier-free guidance, sums, and a counter of network evaluations.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <string>

#include "tiltflow/flow/path.h"
#include "tiltflow/flow/velocity_field.h"

namespace tiltflow {

// v_u + scale (v_c - v_u); scale 1 is the conditional field, 0 the unconditional one. `null_label` stands for "no label".
// Cost: two samples per sample, in one call.
class GuidedField final : public VelocityField {
 public:
  GuidedField(std::shared_ptr<const VelocityField> field, double scale, std::int64_t null_label);
  at::Tensor velocity(const at::Tensor& x, const at::Tensor& t, const Condition& condition) const override;

 private:
  std::shared_ptr<const VelocityField> field_;
  double scale_;
  std::int64_t null_label_;
};

// base + gain(t) side: a frozen field with a trainable network beside it. With gain = sigma/2 the side network is the
// control u itself, of one size at all times, instead of a velocity that must vanish towards t = 1.
class SumField final : public VelocityField {
 public:
  using Gain = std::function<double(double t)>;
  SumField(std::shared_ptr<const VelocityField> base, std::shared_ptr<const VelocityField> side, Gain gain) : base_(std::move(base)), side_(std::move(side)), gain_(std::move(gain)) {}
  at::Tensor velocity(const at::Tensor& x, const at::Tensor& t, const Condition& condition) const override;

 private:
  std::shared_ptr<const VelocityField> base_, side_;
  Gain gain_;
};

// A network that predicts noise or score, as a velocity field. Not defined where the conversion has no limit (t = 0 for noise
// on linear and gvp): start a little later.
class PredictionField final : public VelocityField {
 public:
  // `prediction`: velocity, noise or score. Throws kConfig.
  PredictionField(std::shared_ptr<const VelocityField> field, std::shared_ptr<const Path> path, const std::string& prediction);
  at::Tensor velocity(const at::Tensor& x, const at::Tensor& t, const Condition& condition) const override;

 private:
  std::shared_ptr<const VelocityField> field_;
  std::shared_ptr<const Path> path_;
  std::string prediction_;
};

// Counts per-sample network evaluations in units of one forward: velocity 1, vjp 2 (forward and input gradient).
class CountingField final : public VelocityField {
 public:
  explicit CountingField(std::shared_ptr<const VelocityField> field) : field_(std::move(field)) {}
  at::Tensor velocity(const at::Tensor& x, const at::Tensor& t, const Condition& condition) const override;
  Vjp vjp(const at::Tensor& x, const at::Tensor& t, const Condition& condition, const at::Tensor& cotangent) const override;
  std::int64_t count() const { return count_.load(); }
  void reset() const { count_ = 0; }

 private:
  std::shared_ptr<const VelocityField> field_;
  mutable std::atomic<std::int64_t> count_{0};
};

}  // namespace tiltflow
