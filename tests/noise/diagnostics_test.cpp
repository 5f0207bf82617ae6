#include <map>

#include "tests/support.h"
#include "tiltflow/base/file.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/noise/diagnostics.h"
#include "tiltflow/noise/patches.h"

namespace tiltflow {
namespace {

at::Tensor gaussian(std::int64_t n, std::int64_t d, std::uint32_t key = 0) {
  return RandomStreams(21).normal(Purpose::kProbe, key, 0, 0, n, {d});
}

const NormalityTest& test_named(const NoiseReport& r, const std::string& name) {
  for (const NormalityTest& t : r.tests) {
    if (t.name == name) return t;
  }
  throw std::runtime_error(name);
}

TEST(noise_diagnostics, TheReferenceFiguresAreReproduced) {
  const auto json =
      nlohmann::json::parse(read_file(test::golden_onestep("noise_diagnostics.json")));
  for (const std::int64_t p : {2, 4, 8}) {
    const std::string name = cat("patch_p", p, ".safetensors");
    const ParameterSet t = read_safetensors(test::golden_onestep(name)).tensors;
    const auto rows = [&](const char* key) { return to_patches(t.at(key), p).flatten(0, 1); };
    const PatchStatistics base = patch_statistics(rows("eps"));
    const PatchStatistics out = patch_statistics(rows("out"));
    const auto& expected = json.at(name).at("compare");
    for (const auto& [part, found] :
         {std::pair{"base", to_json(base)}, {"transformed", to_json(out)}}) {
      for (const auto& [key, value] : found.items()) {
        const double e = expected.at(part).at(key).get<double>();
        EXPECT_NEAR(value.get<double>(), e, 1e-5 * std::max(std::abs(e), 0.05))
            << name << " " << part << " " << key;
      }
    }
    const nlohmann::ordered_json difference = compare(base, out);
    for (const auto& [key, value] : difference.items()) {
      const double e = expected.at("compare").at(key).get<double>();
      EXPECT_NEAR(value.get<double>(), e, key.find("eigs") != std::string::npos ? 2e-5 : 1e-5)
          << name << " " << key;  // differences of eigenvalues are rounding noise
    }
    if (!json.at(name).contains("cov_eigenvalues_out") ||
        json.at(name).at("cov_eigenvalues_out").is_null()) {
      continue;
    }
    const auto values = json.at(name).at("cov_eigenvalues_out").get<std::vector<double>>();
    EXPECT_LT((out.eigenvalues - at::tensor(values, at::kDouble)).abs().max().item<double>(), 1e-5);
  }
  const ParameterSet t = read_safetensors(test::golden_onestep("patch_p2_cov.safetensors")).tensors;
  const PatchStatistics s = patch_statistics(t.at("patches"));
  EXPECT_LT((s.eigenvalues - at::linalg_eigvalsh(t.at("cov"))).abs().max().item<double>(), 1e-10);
}

TEST(noise_diagnostics, AFixedRotationKeepsTheLaw) {
  // Bounds for n = 65536, D = 16: four standard errors; the covariance error is near sqrt(D (D + 1)
  // / n).
  const std::int64_t n = 65536;
  const at::Tensor x = gaussian(n, 16);
  const at::Tensor q =
      make_orthogonal_map({"cayley"}, 16)->matrix(gaussian(16, 16, 9).unsqueeze(0))[0];
  const at::Tensor y = x.matmul(q.t());
  const PatchStatistics s = patch_statistics(y);
  const PatchStatistics before = patch_statistics(x);
  EXPECT_LT(std::abs(s.overall_mean), 0.0039);
  EXPECT_LT(s.max_abs_mean_per_dim, 0.0156);
  EXPECT_LT(s.max_abs_var_minus_1, 0.022);
  EXPECT_NEAR(s.cov_identity_fro, 0.064, 0.012);
  EXPECT_NEAR(s.norm_mean, 3.938, 0.011);
  EXPECT_NEAR(s.cov_trace, before.cov_trace, 1e-3);
  EXPECT_GT(s.eigenvalues.min().item<double>(), 0.96);
  EXPECT_LT(s.eigenvalues.max().item<double>(), 1.04);
  const NoiseReport report = noise_report(y.narrow(0, 0, 8192), RandomStreams(1));
  EXPECT_EQ(report.verdict, "consistent with N(0, I)") << to_text(report);
  EXPECT_GT(report.smallest_angle, 0.5 * report.smallest_angle_expected);
}

TEST(noise_diagnostics, SelectionIsDetectedAndNamed) {
  // Turn every row so that its first coordinate is as large as possible: lengths stay exact,
  // directions do not.
  const at::Tensor x = gaussian(512, 8);
  const at::Tensor tilted = x * 0.8;
  at::Tensor y = x.clone();
  y.select(1, 0).copy_(x.narrow(1, 0, 2).norm(2, {1}));
  y.select(1, 1).zero_();
  const NoiseReport report = noise_report(y, RandomStreams(1));
  EXPECT_EQ(report.verdict, "radially exact, angularly tilted") << to_text(report);
  EXPECT_LT(test_named(report, "resultant").p, 1e-10);
  EXPECT_GT(test_named(report, "length").p, 1e-3);
  EXPECT_EQ(noise_report(tilted, RandomStreams(1)).verdict,
            "lengths are off, directions are uniform");
  // Choosing the best of two noises by their first coordinate is seen as well.
  const at::Tensor a = gaussian(2000, 8, 1);
  const at::Tensor b = gaussian(2000, 8, 2);
  const at::Tensor best = at::where((a.select(1, 0) > b.select(1, 0)).unsqueeze(1), a, b);
  EXPECT_NE(noise_report(best, RandomStreams(1)).verdict, "consistent with N(0, I)");
  at::Tensor twins = gaussian(256, 8, 3);
  twins[1].copy_(twins[0]);
  EXPECT_LT(noise_report(twins, RandomStreams(1)).smallest_angle, 0.1);  // a collision
}

TEST(noise_diagnostics, ThePValuesAreUniformOnGaussianNoise) {
  // 60 sets: the number below .1 is binomial, 6 +- 2.3; and none may be absurdly small.
  std::map<std::string, int> below;
  for (std::uint32_t k = 0; k < 60; ++k) {
    for (const NormalityTest& t :
         noise_report(gaussian(100, 6, 100 + k), RandomStreams(k), 0.01, 16).tests) {
      below[t.name] += t.p < 0.1;
      EXPECT_GT(t.p, t.name == "sliced" ? 1e-5 : 1e-4)
          << t.name;  // 16 replicas tell its tail roughly
    }
  }
  EXPECT_EQ(below.size(), 5U);
  for (const auto& [name, count] : below) EXPECT_LE(count, 15) << name;
}

TEST(noise_diagnostics, TooFewAndNonFiniteRows) {
  test::expect_error(ErrorKind::kConfig, "8 rows or more",
                     [] { noise_report(at::zeros({3, 4}), RandomStreams(0)); });
  test::expect_error(ErrorKind::kNonFinite, "not finite",
                     [] { noise_report(at::full({9, 4}, NAN), RandomStreams(0)); });
}

}  // namespace
}  // namespace tiltflow
