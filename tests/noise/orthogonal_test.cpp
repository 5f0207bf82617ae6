#include "tiltflow/noise/orthogonal.h"
#include "tests/noise/normal_points.h"
#include "tests/support.h"
#include "tiltflow/noise/patches.h"

namespace tiltflow {
namespace {

using test::normal_points;

std::vector<OrthogonalConfig> all_maps() {
  std::vector<OrthogonalConfig> out;
  for (const std::string& kind : orthogonal_kinds()) out.push_back({kind});
  return out;
}

// Random parameters far from the identity.
at::Tensor some_parameters(const OrthogonalMap& map, std::int64_t groups, at::ScalarType type) {
  const at::Tensor raw = normal_points(groups, map.parameter_shape(), 5);
  return (map.parameter_shape().back() == map.dimension() && map.parameter_shape().size() == 2 &&
                  map.parameter_shape()[0] == map.dimension()
              ? raw * 0.2
              : raw)
      .to(type);
}

}  // namespace

TEST(noise_orthogonal, EveryMapIsOrthogonalAndTransposesExactly) {
  for (const OrthogonalConfig& config : all_maps()) {
    for (const std::int64_t d : {16, 64, 256}) {
      const auto map = make_orthogonal_map(config, d);
      for (const auto type : {at::kFloat, at::kDouble}) {
        const double bound =
            (type == at::kFloat ? (config.kind == "expm" && d == 256 ? 1e-4 : 1e-5) : 1e-12) *
            std::sqrt(static_cast<double>(d));
        const at::Tensor raw = some_parameters(*map, 2, type);
        const at::Tensor q = map->matrix(raw);
        const at::Tensor rows = normal_points(2, {3, d}).to(type);
        for (int g = 0; g < 2; ++g) {
          EXPECT_LT(orthogonality(q[g]).error, bound) << config.kind << " " << d;
        }
        EXPECT_LT(test::relative_error(map->apply(raw, rows), at::matmul(rows, q.transpose(1, 2))),
                  type == at::kFloat ? 2e-5 : 1e-11)
            << config.kind;
        EXPECT_LT(test::relative_error(map->apply_transposed(raw, map->apply(raw, rows)), rows),
                  type == at::kFloat ? 3e-5 : 1e-11)
            << config.kind;
        EXPECT_GT(test::relative_error(map->apply(raw, rows), rows), 0.05)
            << config.kind << ": these parameters should turn the rows";
      }
    }
  }
}

TEST(noise_orthogonal, DeterminantsAndStartsAtTheIdentity) {
  for (const OrthogonalConfig& config : all_maps()) {
    const auto map = make_orthogonal_map(config, 16);
    EXPECT_NEAR(
        at::linalg_det(map->matrix(some_parameters(*map, 1, at::kDouble))[0]).item<double>(), 1,
        1e-9)
        << config.kind;
    const at::Tensor start = map->matrix(map->initial(RandomStreams(1), 0, 1).to(at::kDouble))[0];
    EXPECT_LT((start - at::eye(16, at::kDouble)).abs().max().item<double>(), 1e-2) << config.kind;
  }
  for (const int k : {1, 3}) {
    const auto map = make_orthogonal_map({"householder", k}, 8);
    EXPECT_NEAR(
        at::linalg_det(map->matrix(some_parameters(*map, 1, at::kDouble))[0]).item<double>(), -1,
        1e-9);
  }
}

TEST(noise_orthogonal, ExponentialAndCayleyAgreeToThirdOrder) {
  const auto expm = make_orthogonal_map({"expm"}, 16);
  const auto cayley = make_orthogonal_map({"cayley"}, 16);
  const at::Tensor raw = normal_points(1, {16, 16});
  const auto difference = [&](double h) {
    return (expm->matrix(raw * h) - cayley->matrix(raw * (h / 2))).norm().item<double>();
  };
  EXPECT_NEAR(difference(0.02) / difference(0.01), 8, 0.2);
}

TEST(noise_orthogonal, GradientsAgreeWithCentralDifferences) {
  for (const OrthogonalConfig& config : all_maps()) {
    const auto map = make_orthogonal_map(config, 8);
    for (const bool transposed : {false, true}) {
      const at::Tensor raw = some_parameters(*map, 2, at::kDouble).set_requires_grad(true);
      const at::Tensor rows = normal_points(2, {3, 8}, 1).set_requires_grad(true);
      const at::Tensor weight = normal_points(2, {3, 8}, 2);
      const auto value = [&](const at::Tensor& r, const at::Tensor& x) {
        return ((transposed ? map->apply_transposed(r, x) : map->apply(r, x)) * weight).sum();
      };
      const auto g = torch::autograd::grad({value(raw, rows)}, {raw, rows});
      const at::NoGradGuard no_grad;
      const double h = 1e-5;
      const at::Tensor dr = normal_points(2, raw.sizes().slice(1), 3);
      const at::Tensor dx = normal_points(2, rows.sizes().slice(1), 4);
      const double by_raw =
          ((value(raw + h * dr, rows) - value(raw - h * dr, rows)) / (2 * h)).item<double>();
      const double by_rows =
          ((value(raw, rows + h * dx) - value(raw, rows - h * dx)) / (2 * h)).item<double>();
      EXPECT_NEAR((g[0] * dr).sum().item<double>(), by_raw, 1e-6 * (1 + std::abs(by_raw)))
          << config.kind << transposed;
      EXPECT_NEAR((g[1] * dx).sum().item<double>(), by_rows, 1e-6 * (1 + std::abs(by_rows)))
          << config.kind << transposed;
    }
  }
  // A shared map: the gradient of one set of parameters is the sum over the groups.
  for (const char* kind : {"cayley", "householder", "butterfly"}) {
    const auto map = make_orthogonal_map({kind}, 8);
    const at::Tensor raw = some_parameters(*map, 1, at::kDouble).set_requires_grad(true);
    const at::Tensor rows = normal_points(3, {2, 8}, 1);
    const at::Tensor weight = normal_points(3, {2, 8}, 2);
    const at::Tensor shared =
        torch::autograd::grad({(map->apply(raw, rows) * weight).sum()}, {raw})[0];
    at::Tensor sum = at::zeros_like(raw);
    for (int i = 0; i < 3; ++i) {
      sum = sum +
            torch::autograd::grad(
                {(map->apply(raw, rows.narrow(0, i, 1)) * weight.narrow(0, i, 1)).sum()}, {raw})[0];
    }
    EXPECT_LT(test::relative_error(shared, sum), 1e-12) << kind;
  }
}

TEST(noise_orthogonal, TheCayleyBackwardIsThatOfTheExponentialAtTheIdentity) {
  // At S = 0: d exp(S) = dS, d cayley(S) = 2 dS.
  const auto expm = make_orthogonal_map({"expm"}, 8);
  const auto cayley = make_orthogonal_map({"cayley"}, 8);
  const at::Tensor raw = at::zeros({1, 8, 8}, at::kDouble).set_requires_grad(true);
  const at::Tensor rows = normal_points(1, {4, 8}, 1);
  const at::Tensor weight = normal_points(1, {4, 8}, 2);
  const auto gradient = [&](const OrthogonalMap& map) {
    return torch::autograd::grad({(map.apply(raw, rows) * weight).sum()}, {raw})[0];
  };
  EXPECT_LT(test::relative_error(gradient(*cayley), 2 * gradient(*expm)), 1e-10);
}

TEST(noise_orthogonal, RotationBetweenTwoVectors) {
  const at::Tensor eps = normal_points(6, {12});
  const at::Tensor z = on_sphere(normal_points(6, {12}, 1), eps);
  const at::Tensor q = rotation_between(eps, z);
  EXPECT_LT(test::relative_error(at::matmul(q, eps.unsqueeze(2)).squeeze(2), z), 1e-12);
  for (int i = 0; i < 6; ++i) {
    EXPECT_LT(orthogonality(q[i]).error, 1e-12);
    EXPECT_NEAR(at::linalg_det(q[i]).item<double>(), 1, 1e-10);
    // The product of two reflections: first in the bisector a + b, then in b.
    const auto reflection = [](const at::Tensor& v) {
      return at::eye(12, at::kDouble) - 2 * at::outer(v, v) / v.square().sum();
    };
    const at::Tensor a = eps[i] / eps[i].norm();
    const at::Tensor b = z[i] / z[i].norm();
    EXPECT_LT(test::relative_error(q[i], reflection(b).matmul(reflection(a + b))), 1e-10);
  }
  const at::Tensor back =
      rotation_between(eps, -eps);  // opposite: a reflection, still orthogonal and exact
  EXPECT_LT(test::relative_error(at::matmul(back, eps.unsqueeze(2)).squeeze(2), -eps), 1e-12);
  EXPECT_LT(orthogonality(back[0]).error, 1e-12);
}

TEST(noise_orthogonal, RiemannianStepsFindTheTopEigenvector) {
  // Maximise (Q e)^T A (Q e) over rotations: the top eigenvector, however the angle is bounded.
  const at::Tensor m = normal_points(6, {6});
  const at::Tensor a = m.matmul(m.t());
  const at::Tensor e = normal_points(1, {6}, 1)[0];
  at::Tensor q = at::eye(6, at::kDouble).unsqueeze(0);
  for (int i = 0; i < 400; ++i) {
    const at::Tensor gradient = -2 * at::outer(a.matmul(q[0].matmul(e)), e).unsqueeze(0);
    const at::Tensor before = q;
    q = riemannian_step(q, gradient, 0.1 * std::pow(0.98, i));
    EXPECT_LE(at::linalg_matrix_norm(q[0] - before[0], 2).item<double>(),
              0.1001);  // |exp(i t) - 1| <= t
  }
  EXPECT_LT(orthogonality(q[0]).error, 1e-12);
  const at::Tensor x = q[0].matmul(e);
  EXPECT_NEAR((x.dot(a.matmul(x)) / e.square().sum()).item<double>() /
                  at::linalg_eigvalsh(a)[5].item<double>(),
              1, 1e-4);
}

TEST(noise_orthogonal, WrongSizesAreRefused) {
  test::expect_error(ErrorKind::kConfig, "power of two",
                     [] { make_orthogonal_map({"butterfly"}, 12); });
  test::expect_error(ErrorKind::kConfig, "even number", [] { make_orthogonal_map({"givens"}, 7); });
  test::expect_error(ErrorKind::kConfig, "into 4 blocks",
                     [] { make_orthogonal_map({"block"}, 10); });
  test::expect_error(ErrorKind::kConfig, "did you mean 'cayley'",
                     [] { make_orthogonal_map({"caley"}, 10); });
}

}  // namespace tiltflow
