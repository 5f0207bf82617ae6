#include "tiltflow/sampler/likelihood.h"

#include <cmath>
#include <numbers>

#include "tiltflow/tensor/aten.h"

namespace tiltflow {
namespace {

Condition repeat(const Condition& condition, std::int64_t times) {
  return {condition.labels.defined() ? condition.labels.repeat({times}) : at::Tensor()};
}

// (x, accumulated divergence) as one state [N, D + 1].
class AugmentedField final : public VelocityField {
 public:
  AugmentedField(const VelocityField& field, const DivergenceRule& rule,
                 std::vector<std::int64_t> shape)
      : field_(field), rule_(rule), shape_(std::move(shape)) {}
  at::Tensor velocity(const at::Tensor& state, const at::Tensor& t,
                      const Condition& condition) const override {
    std::vector<std::int64_t> shape = shape_;
    shape[0] = state.size(0);
    const Divergence d =
        rule_(field_, state.narrow(1, 0, state.size(1) - 1).reshape(shape), t, condition);
    return at::cat({d.velocity.flatten(1), d.divergence.unsqueeze(1)}, 1);
  }

 private:
  const VelocityField& field_;
  const DivergenceRule& rule_;
  std::vector<std::int64_t> shape_;
};

}  // namespace

DivergenceRule hutchinson(at::Tensor probes) {
  return [probes = std::move(probes)](const VelocityField& field, const at::Tensor& x,
                                      const at::Tensor& t, const Condition& condition) {
    Divergence out;
    for (std::int64_t p = 0; p < probes.size(0); ++p) {
      const at::Tensor e = probes[p];
      const Vjp vjp = field.vjp(x, t, condition, e);
      const at::Tensor trace = (vjp.input_gradient * e).flatten(1).sum(1);
      out.divergence = p == 0 ? trace : out.divergence + trace;
      out.velocity = vjp.velocity;
    }
    out.divergence = out.divergence / static_cast<double>(probes.size(0));
    return out;
  };
}

DivergenceRule exact_divergence(std::int64_t rows) {
  return [rows](const VelocityField& field, const at::Tensor& x, const at::Tensor& t,
                const Condition& condition) {
    const std::int64_t n = x.size(0);
    const std::int64_t d = x.numel() / n;
    const std::int64_t at_once = std::max<std::int64_t>(1, rows / n);
    Divergence out{{}, at::zeros({n}, x.options())};
    for (std::int64_t j = 0; j < d; j += at_once) {
      const std::int64_t m =
          std::min(at_once, d - j);  // m copies of the batch, one unit vector each
      at::Tensor e = at::zeros({m, n, d}, x.options());
      for (std::int64_t i = 0; i < m; ++i) e[i].select(1, j + i).fill_(1);
      std::vector<std::int64_t> copies(static_cast<std::size_t>(x.dim()), 1);
      std::vector<std::int64_t> shape = x.sizes().vec();
      copies[0] = m;
      shape[0] = m * n;
      const Vjp vjp =
          field.vjp(x.repeat(copies), t.repeat({m}), repeat(condition, m), e.view(shape));
      out.divergence =
          out.divergence + (vjp.input_gradient.reshape({m, n, d}) * e).sum(at::IntArrayRef({0, 2}));
      if (j == 0) out.velocity = vjp.velocity.narrow(0, 0, n);
    }
    return out;
  };
}

at::Tensor rademacher(const RandomStreams& streams, std::int64_t probes, std::int64_t first,
                      std::int64_t n, at::IntArrayRef shape) {
  std::vector<at::Tensor> out;
  for (std::int64_t p = 0; p < probes; ++p) {
    out.push_back(at::where(
        streams.uniform(Purpose::kProbe, static_cast<std::uint32_t>(p), first, n, shape) < 0.5,
        at::scalar_tensor(-1.0F), at::scalar_tensor(1.0F)));
  }
  return at::stack(out);
}

Likelihood log_likelihood(const VelocityField& field, const at::Tensor& x,
                          const std::vector<double>& grid, const Condition& condition,
                          const DivergenceRule& divergence, const OdeOptions& options) {
  const AugmentedField augmented(field, divergence, x.sizes().vec());
  const OdeResult end =
      solve_ode(augmented, at::cat({x.flatten(1), at::zeros({x.size(0), 1}, x.options())}, 1), grid,
                condition, options);
  const at::Tensor z = end.x.narrow(1, 0, end.x.size(1) - 1);
  const at::Tensor wide = z.to(at::kDouble);
  const at::Tensor log_prior = wide.square().sum(1) * -0.5 - 0.5 * static_cast<double>(z.size(1)) *
                                                                 std::log(2 * std::numbers::pi);
  return {log_prior + end.x.select(1, end.x.size(1) - 1).to(at::kDouble), z.reshape(x.sizes()),
          end.evaluations};
}

}  // namespace tiltflow
