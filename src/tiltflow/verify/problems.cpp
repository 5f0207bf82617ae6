#include "tiltflow/verify/problems.h"

#include "tiltflow/base/strings.h"
#include "tiltflow/models/mixture/mixture_model.h"
#include "tiltflow/reward/reward.h"
#include "tiltflow/tensor/aten.h"

namespace tiltflow {
namespace {

class FormReward final : public Reward {
 public:
  explicit FormReward(QuadraticForm form) : form_(std::move(form)) {}
  const RewardInfo& info() const override { return info_; }
  at::Tensor score(const at::Tensor& samples, const RewardCondition&) const override {
    return evaluate(form_, samples);
  }

 private:
  QuadraticForm form_;
  RewardInfo info_{"closed-form", true, ""};
};

at::Tensor numbers(std::initializer_list<double> values) {
  return at::tensor(std::vector<double>(values), at::kDouble);
}

}  // namespace

ExactProblem make_problem(std::string name, GaussianMixture base, QuadraticForm form,
                          const std::string& path_name) {
  ExactProblem out;
  out.name = std::move(name);
  out.path = make_path(path_name);
  out.target = tilt(base, form);
  out.base = std::make_shared<MixtureField>(std::move(base), out.path);
  out.reward =
      std::make_shared<StateReward>(std::make_shared<FormReward>(form), identity_decoder());
  out.form = std::move(form);
  return out;
}

ExactProblem two_modes(const std::string& path, double slope) {
  return make_problem("1-D two modes, linear r",
                      isotropic_mixture(numbers({0.5, 0.5}), numbers({-2, 2}).view({2, 1}), 0.4),
                      linear_form(numbers({slope})), path);
}

ExactProblem near_modes() {
  return make_problem(
      "1-D near modes, linear r",
      isotropic_mixture(numbers({0.5, 0.5}), numbers({-1.2, 1.2}).view({2, 1}), 0.5),
      linear_form(numbers({0.7})));
}

ExactProblem near_modes_quadratic() {
  return make_problem(
      "1-D near modes, quadratic r",
      isotropic_mixture(numbers({0.5, 0.5}), numbers({-1.2, 1.2}).view({2, 1}), 0.5),
      quadratic_form(numbers({0.6}).view({1, 1}), numbers({1.5})));
}

ExactProblem plane_modes(bool quadratic) {
  const at::Tensor means = numbers({-1.1, -0.8, 1.1, -0.4, 0.0, 1.2}).view({3, 2});
  const at::Tensor covariances =
      numbers({0.40, 0.12, 0.12, 0.35, 0.35, -0.10, -0.10, 0.45, 0.45, 0.0, 0.0, 0.30})
          .view({3, 2, 2});
  GaussianMixture base{numbers({0.3, 0.4, 0.3}), means, covariances};
  if (quadratic) {
    return make_problem(
        "2-D three modes, quadratic r", std::move(base),
        quadratic_form(numbers({0.6, 0.1, 0.1, 0.4}).view({2, 2}), numbers({0.5, 0.8})));
  }
  return make_problem("2-D three modes, linear r", std::move(base),
                      linear_form(numbers({0.5, 0.6})));
}

ExactProblem unnormalised_modes() {
  RewardTerm term;
  term.name = "log-density";
  term.over_normal = true;
  term.args = {{"weights", "0.3 0.7"}, {"means", "-0.5 0.3; 0.6 -0.4"}, {"deviations", "0.6 0.7"}};
  ExactProblem p =
      make_problem("unnormalised modes",
                   isotropic_mixture(at::ones({1}, at::kDouble), at::zeros({1, 2}, at::kDouble), 1),
                   linear_form(at::zeros({2}, at::kDouble)));
  const GaussianMixture law = mixture_from_args(term.args);
  const at::Tensor x = sample(law, RandomStreams(1), 0, 400000);
  p.reward = std::make_shared<StateReward>(make_reward(term), identity_decoder());
  p.target = {law, 0,
              p.reward->score(x.to(at::kFloat), {})
                  .to(at::kDouble)
                  .mean()
                  .item<double>()};  // E r by sampling: the KL's error is below 0.003
  return p;
}

ExactProblem line_gaussian(bool quadratic, const std::string& path) {
  GaussianMixture base = isotropic_mixture(numbers({1}), numbers({0.5}).view({1, 1}), 0.7);
  if (quadratic) {
    return make_problem("1-D Gaussian, quadratic r", std::move(base),
                        quadratic_form(numbers({1.5}).view({1, 1}), numbers({2})), path);
  }
  return make_problem("1-D Gaussian, linear r", std::move(base), linear_form(numbers({1.5})), path);
}

ExactProblem wide_gaussian(std::int64_t d, bool quadratic) {
  const RandomStreams streams(11);
  const at::Tensor factor = streams.normal(Purpose::kExact, 0, 7, 0, d, {d}, at::kDouble) *
                            (0.4 / std::sqrt(static_cast<double>(d)));
  const at::Tensor covariance = at::matmul(factor, factor.t()) + at::eye(d, at::kDouble) * 0.3;
  const at::Tensor mean = streams.normal(Purpose::kExact, 0, 8, 0, 1, {d}, at::kDouble)[0] * 0.5;
  const at::Tensor slope = streams.normal(Purpose::kExact, 0, 9, 0, 1, {d}, at::kDouble)[0];
  GaussianMixture base{numbers({1}), mean.unsqueeze(0), covariance.unsqueeze(0)};
  if (quadratic) {
    return make_problem(cat(d, "-D Gaussian, quadratic r"), std::move(base),
                        quadratic_form(at::eye(d, at::kDouble) * 0.5, slope / slope.norm() * 1.5));
  }
  return make_problem(cat(d, "-D Gaussian, linear r"), std::move(base),
                      linear_form(slope / slope.norm() * 1.5));
}

}  // namespace tiltflow
