#include "tiltflow/noise/orthogonal.h"

#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <cmath>

#include "tiltflow/base/error.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/tensor/aten.h"

namespace tiltflow {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

at::Tensor skew(const at::Tensor& raw) { return raw - raw.transpose(-2, -1); }
at::Tensor identity_like(const at::Tensor& m) { return at::eye(m.size(-1), m.options()); }

// Q = (I - S)^-1 (I + S). Backward by the same factorisation: dQ = (I - S)^-1 dS (I + Q), so gS =
// (I + S)^-1 gQ (I + Q)^T, where (I + S) = (I - S)^T.
class CayleyFunction final : public torch::autograd::Function<CayleyFunction> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& raw) {
    const at::Tensor s = skew(raw);
    const at::Tensor i = identity_like(s);
    const auto [lu, pivots] = at::linalg_lu_factor(i - s);
    const at::Tensor q = at::linalg_lu_solve(lu, pivots, i + s);
    context->save_for_backward({lu, pivots, q});
    return q;
  }
  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const variable_list saved = context->get_saved_variables();
    const at::Tensor& q = saved[2];
    const at::Tensor right = gradients[0].matmul((identity_like(q) + q).transpose(-2, -1));
    const at::Tensor gs =
        at::linalg_lu_solve(saved[0], saved[1], right, /*left=*/true, /*adjoint=*/true);
    return {skew(gs)};
  }
};

// Rows through k reflections, one after another: x -> x - 2 (x.v) v / |v|^2. The inverse of a
// reflection is itself, so the backward recomputes every intermediate from the output and keeps
// none.
class HouseholderFunction final : public torch::autograd::Function<HouseholderFunction> {
 public:
  static at::Tensor reflect(const at::Tensor& x, const at::Tensor& v) {  // [G, R, D], [G, D]
    const at::Tensor along = at::matmul(x, v.unsqueeze(2));              // [G, R, 1]
    return x - along * (2 / v.square().sum(1, true).unsqueeze(2)) * v.unsqueeze(1);
  }
  static at::Tensor forward(AutogradContext* context, const at::Tensor& v, const at::Tensor& rows,
                            bool transposed) {
    at::Tensor x = rows;
    const std::int64_t k = v.size(1);
    for (std::int64_t i = 0; i < k; ++i) x = reflect(x, v.select(1, transposed ? k - 1 - i : i));
    context->save_for_backward({v, x});
    context->saved_data["transposed"] = transposed;
    return x;
  }
  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const variable_list saved = context->get_saved_variables();
    const at::Tensor& v = saved[0];
    const bool transposed = context->saved_data["transposed"].toBool();
    at::Tensor x = saved[1];
    at::Tensor g = gradients[0];
    const std::int64_t k = v.size(1);
    std::vector<at::Tensor> gv(static_cast<std::size_t>(k));
    for (std::int64_t i = k - 1; i >= 0; --i) {
      const std::int64_t j = transposed ? k - 1 - i : i;
      const at::Tensor w = v.select(1, j);
      const at::Tensor c = 2 / w.square().sum(1, true).unsqueeze(2);  // [G, 1, 1]
      x = reflect(x, w);  // the input of this reflection
      const at::Tensor xv = at::matmul(x, w.unsqueeze(2));
      const at::Tensor gw = at::matmul(g, w.unsqueeze(2));  // [G, R, 1]
      // y = x - c (x.v) v, c = 2/|v|^2: dL/dv = -c sum_r [(g.v) x + (x.v) g] + c^2 sum_r (x.v)(g.v)
      // v
      gv[static_cast<std::size_t>(j)] =
          (-c * (gw * x + xv * g) + c.square() * xv * gw * w.unsqueeze(1))
              .sum(1)
              .sum_to_size(w.sizes());
      g = reflect(g, w);
    }
    return {at::stack(gv, 1), g, {}};
  }
};

class MatrixMap : public OrthogonalMap {
 public:
  explicit MatrixMap(std::int64_t d) : d_(d) {}
  std::int64_t dimension() const override { return d_; }
  std::vector<std::int64_t> parameter_shape() const override { return {d_, d_}; }
  at::Tensor initial(const RandomStreams& streams, std::int64_t first,
                     std::int64_t n) const override {
    return streams.normal(Purpose::kInit, 0, 0, first, n, parameter_shape()) * 1e-4;
  }
  at::Tensor apply(const at::Tensor& raw, const at::Tensor& rows) const override {
    return at::matmul(rows, q(raw).transpose(1, 2));
  }
  at::Tensor apply_transposed(const at::Tensor& raw, const at::Tensor& rows) const override {
    return at::matmul(rows, q(raw));
  }

 protected:
  virtual at::Tensor q(const at::Tensor& raw) const = 0;
  std::int64_t d_;
};

class ExponentialMap final : public MatrixMap {
  using MatrixMap::MatrixMap;
  at::Tensor q(const at::Tensor& raw) const override { return at::matrix_exp(skew(raw)); }
};

class CayleyMap final : public MatrixMap {
  using MatrixMap::MatrixMap;
  at::Tensor q(const at::Tensor& raw) const override { return CayleyFunction::apply(raw); }
};

class HouseholderMap final : public OrthogonalMap {
 public:
  HouseholderMap(std::int64_t d, std::int64_t k) : d_(d), k_(k) {
    if (k < 1) fail(ErrorKind::kConfig, "householder: at least one reflection");
  }
  std::int64_t dimension() const override { return d_; }
  std::vector<std::int64_t> parameter_shape() const override { return {k_, d_}; }
  at::Tensor initial(const RandomStreams& streams, std::int64_t first,
                     std::int64_t n) const override {
    at::Tensor v = streams.normal(Purpose::kInit, 0, 0, first, n, parameter_shape());
    for (std::int64_t i = 0; i + 1 < k_; i += 2) {
      v.select(1, i + 1).copy_(v.select(1, i));  // pairs cancel
    }
    return v;
  }
  at::Tensor apply(const at::Tensor& raw, const at::Tensor& rows) const override {
    return HouseholderFunction::apply(raw.expand({rows.size(0), k_, d_}), rows, false);
  }
  at::Tensor apply_transposed(const at::Tensor& raw, const at::Tensor& rows) const override {
    return HouseholderFunction::apply(raw.expand({rows.size(0), k_, d_}), rows, true);
  }

 private:
  std::int64_t d_, k_;
};

class BlockMap final : public OrthogonalMap {
 public:
  BlockMap(std::int64_t d, std::int64_t blocks) : d_(d), b_(blocks) {
    if (blocks < 1 || d % blocks) {
      fail(ErrorKind::kConfig,
           cat("block: ", d, " dimensions cannot be divided into ", blocks, " blocks"));
    }
  }
  std::int64_t dimension() const override { return d_; }
  std::vector<std::int64_t> parameter_shape() const override { return {b_, d_ / b_, d_ / b_}; }
  at::Tensor initial(const RandomStreams& streams, std::int64_t first,
                     std::int64_t n) const override {
    return streams.normal(Purpose::kInit, 0, 0, first, n, parameter_shape()) * 1e-4;
  }
  at::Tensor apply(const at::Tensor& raw, const at::Tensor& rows) const override {
    return run(at::matrix_exp(skew(raw)).transpose(2, 3), rows);
  }
  at::Tensor apply_transposed(const at::Tensor& raw, const at::Tensor& rows) const override {
    return run(at::matrix_exp(skew(raw)), rows);
  }

 private:
  at::Tensor run(const at::Tensor& right, const at::Tensor& rows) const {  // [G, b, m, m]
    const at::Tensor parts =
        rows.view({rows.size(0), rows.size(1), b_, d_ / b_}).transpose(1, 2);  // [G, b, R, m]
    return at::matmul(parts, right).transpose(1, 2).reshape(rows.sizes());
  }
  std::int64_t d_, b_;
};

// Layers of rotations in disjoint planes (i, j): the pairs of a layer and, after it, where every
// coordinate stands.
class GivensMap final : public OrthogonalMap {
 public:
  GivensMap(std::int64_t d, std::vector<std::vector<std::pair<std::int64_t, std::int64_t>>> layers)
      : d_(d) {
    for (const auto& layer : layers) {
      std::vector<std::int64_t> first, second, back(static_cast<std::size_t>(d));
      for (const auto& [i, j] : layer) {
        back[static_cast<std::size_t>(i)] = static_cast<std::int64_t>(first.size());
        back[static_cast<std::size_t>(j)] = d / 2 + static_cast<std::int64_t>(first.size());
        first.push_back(i);
        second.push_back(j);
      }
      layers_.push_back({at::tensor(first, at::kLong), at::tensor(second, at::kLong),
                         at::tensor(back, at::kLong)});
    }
  }
  std::int64_t dimension() const override { return d_; }
  std::vector<std::int64_t> parameter_shape() const override {
    return {static_cast<std::int64_t>(layers_.size()), d_ / 2};
  }
  at::Tensor initial(const RandomStreams&, std::int64_t, std::int64_t n) const override {
    return at::zeros({n, static_cast<std::int64_t>(layers_.size()), d_ / 2});
  }
  at::Tensor apply(const at::Tensor& raw, const at::Tensor& rows) const override {
    at::Tensor x = rows;
    for (std::size_t l = 0; l < layers_.size(); ++l) {
      x = rotate(x, layers_[l], raw.select(1, static_cast<std::int64_t>(l)));
    }
    return x;
  }
  at::Tensor apply_transposed(const at::Tensor& raw, const at::Tensor& rows) const override {
    at::Tensor x = rows;
    for (std::size_t l = layers_.size(); l-- > 0;) {
      x = rotate(x, layers_[l], -raw.select(1, static_cast<std::int64_t>(l)));
    }
    return x;
  }

 private:
  struct Layer {
    at::Tensor first, second, back;
  };
  static at::Tensor rotate(const at::Tensor& x, const Layer& layer, const at::Tensor& angle) {
    const at::Tensor a = x.index_select(2, layer.first);
    const at::Tensor b = x.index_select(2, layer.second);
    const at::Tensor c = angle.cos().unsqueeze(1);
    const at::Tensor s = angle.sin().unsqueeze(1);
    return at::cat({c * a - s * b, s * a + c * b}, 2).index_select(2, layer.back);
  }
  std::int64_t d_;
  std::vector<Layer> layers_;
};

using Pairs = std::vector<std::vector<std::pair<std::int64_t, std::int64_t>>>;

// Round-robin tournament (circle method): D - 1 layers in which every pair of coordinates meets
// once.
Pairs tournament(std::int64_t d, std::int64_t layers) {
  if (d % 2) fail(ErrorKind::kConfig, cat("givens: ", d, " dimensions, an even number is needed"));
  if (layers < 0) fail(ErrorKind::kConfig, "givens: a negative number of layers");
  if (layers == 0) layers = d - 1;
  Pairs out;
  for (std::int64_t r = 0; r < layers; ++r) {
    out.emplace_back();
    out.back().emplace_back(d - 1, r % (d - 1));
    for (std::int64_t i = 1; i < d / 2; ++i) {
      out.back().emplace_back((r + i) % (d - 1), (r + (d - 1) - i) % (d - 1));
    }
  }
  return out;
}

Pairs butterfly(std::int64_t d) {
  if (d < 2 || (d & (d - 1))) {
    fail(ErrorKind::kConfig, cat("butterfly: ", d, " dimensions, a power of two is needed"));
  }
  Pairs out;
  for (std::int64_t bit = 1; bit < d; bit <<= 1) {
    out.emplace_back();
    for (std::int64_t i = 0; i < d; ++i) {
      if (!(i & bit)) out.back().emplace_back(i, i | bit);
    }
  }
  return out;
}

}  // namespace

at::Tensor OrthogonalMap::matrix(const at::Tensor& raw) const {
  const at::Tensor basis = at::eye(dimension(), raw.options().requires_grad(false))
                               .expand({raw.size(0), dimension(), dimension()});
  return apply(raw, basis.contiguous()).transpose(1, 2);  // row e_j becomes the j-th column of Q
}

const std::vector<std::string>& orthogonal_kinds() {
  static const std::vector<std::string> kinds{"expm",  "cayley", "householder",
                                              "block", "givens", "butterfly"};
  return kinds;
}

std::unique_ptr<OrthogonalMap> make_orthogonal_map(const OrthogonalConfig& c, std::int64_t d) {
  if (d < 1) fail(ErrorKind::kConfig, cat("an orthogonal map of ", d, " dimensions"));
  if (c.kind == "expm") return std::make_unique<ExponentialMap>(d);
  if (c.kind == "cayley") return std::make_unique<CayleyMap>(d);
  if (c.kind == "householder") return std::make_unique<HouseholderMap>(d, c.reflections);
  if (c.kind == "block") return std::make_unique<BlockMap>(d, c.blocks);
  if (c.kind == "givens") return std::make_unique<GivensMap>(d, tournament(d, c.layers));
  if (c.kind == "butterfly") return std::make_unique<GivensMap>(d, butterfly(d));
  fail(ErrorKind::kConfig,
       cat("orthogonal map '", c.kind, "' is unknown", did_you_mean(c.kind, orthogonal_kinds())),
       "known: " + join(orthogonal_kinds(), ", "));
}

at::Tensor on_sphere(const at::Tensor& u, const at::Tensor& eps) {
  return u * (eps.norm(2, {1}, true) / u.norm(2, {1}, true));
}

at::Tensor rotation_between(const at::Tensor& eps, const at::Tensor& z) {
  const at::Tensor a = eps / eps.norm(2, {1}, true);
  const at::Tensor b = z / z.norm(2, {1}, true);
  const at::Tensor cosine = (a * b).sum(1, true).unsqueeze(2);  // [N, 1, 1]
  const at::Tensor i = at::eye(a.size(1), a.options());
  const at::Tensor sum = a + b;
  const at::Tensor difference = a - b;
  const at::Tensor rotation = i -
                              sum.unsqueeze(2) * sum.unsqueeze(1) / (1 + cosine).clamp_min(1e-12) +
                              2 * b.unsqueeze(2) * a.unsqueeze(1);
  const at::Tensor reflection =
      i - 2 * difference.unsqueeze(2) * difference.unsqueeze(1) /
              difference.square().sum(1, true).unsqueeze(2).clamp_min(1e-12);
  return at::where(cosine > -1 + 1e-6, rotation, reflection);
}

at::Tensor riemannian_step(const at::Tensor& q, const at::Tensor& gradient, double angle) {
  const at::Tensor omega =
      gradient.matmul(q.transpose(-2, -1)) - q.matmul(gradient.transpose(-2, -1));
  const at::Tensor largest = at::linalg_matrix_norm(omega, 2).view({-1, 1, 1});
  const at::Tensor step = omega * (-angle / largest.clamp_min(1e-30));
  const at::Tensor next =
      at::matrix_exp(at::where(largest > 0, step, at::zeros_like(step))).matmul(q);
  return next +
         0.5 * next.matmul(identity_like(q) - next.transpose(-2, -1).matmul(
                                                  next));  // one Newton step back to the group
}

Orthogonality orthogonality(const at::Tensor& q) {
  const at::Tensor m = q.to(at::kDouble);
  const at::Tensor values = at::linalg_svdvals(m);
  return {(m.t().matmul(m) - identity_like(m)).norm().item<double>(), values.min().item<double>(),
          values.max().item<double>(), values.mean().item<double>(),
          at::linalg_det(m).abs().item<double>()};
}

}  // namespace tiltflow
