// The exact field of pictures of one colour, and draws of it.
#pragma once

#include "tests/support.h"
#include "tiltflow/flow/gaussian_mixture.h"
#include "tiltflow/sampler/sample.h"

namespace tiltflow::test {

constexpr double kPictureWidth =
    0.01;  // of the modes: a thousandth of a picture's range, so that all else is noise

// Pictures of 4 x 4 pixels in two narrow modes, at +pattern and -pattern.
class PictureField final : public VelocityField {
 public:
  explicit PictureField(const std::shared_ptr<const Path>& path) : field_(mixture(), path) {}
  static at::Tensor pattern() { return at::linspace(0.3, 0.6, 16, at::kDouble); }
  at::Tensor velocity(const at::Tensor& x, const at::Tensor& t, const Condition& c) const override {
    return field_.velocity(x.flatten(1), t, c).view_as(x);
  }
  Vjp vjp_of(const at::Tensor& x, const at::Tensor& t, const Condition& c,
             const Cotangent& cotangent) const override {
    return field_.vjp_of(x.flatten(1), t, c, cotangent);
  }

 private:
  static GaussianMixture mixture() {
    return isotropic_mixture(at::full({2}, 0.5, at::kDouble), at::stack({pattern(), -pattern()}),
                             kPictureWidth);
  }
  MixtureField field_;
};

inline SamplerConfig sampler_named(const std::string& name, std::int64_t steps = 12) {
  SamplerConfig config;
  config.name = name;
  config.steps = steps;
  return config;
}

inline Draws draw_pictures(const SamplerConfig& sampler, const std::string& path_name,
                           bool prediction) {
  const std::shared_ptr<const Path> path = make_path(path_name);
  DrawOptions options;
  options.n = 24;
  options.chunk = 10;
  options.keep_prediction = prediction;
  return draw(PictureField(path), sampler, *path, {1, 4, 4}, RandomStreams(5), no_labels(),
              options);
}

}  // namespace tiltflow::test
