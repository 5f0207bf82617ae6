#include "tiltflow/noise/patches.h"
#include "tests/noise/normal_points.h"
#include "tests/support.h"
#include "tiltflow/base/strings.h"

namespace tiltflow {
namespace {

using test::normal_points;

}  // namespace

TEST(noise_patches, RoundTripOrderAndEnergy) {
  for (const std::int64_t p : {1, 2, 4, 8}) {
    const at::Tensor x = normal_points(3, {4, 8, 16});
    EXPECT_TRUE(at::equal(from_patches(to_patches(x, p), p, {4, 8, 16}), x));
    for (const bool per_sample : {false, true}) {
      PatchConfig config{{"cayley"}, p, p == 8 ? 1 : 2, per_sample};
      const PatchMap map(config, {4, 8, 16});
      const at::Tensor raw = normal_points(map.maps(3), map.map().parameter_shape(), 2) * 0.3;
      const at::Tensor y = map.apply(raw, x);
      EXPECT_LT(test::relative_error(to_patches(y, p).norm(2, {2}), to_patches(x, p).norm(2, {2})),
                1e-10);
      EXPECT_LT(test::relative_error(map.apply_transposed(raw, y), x), 1e-10);
      EXPECT_LT(test::relative_error(map.apply_matrices(map.map().matrix(raw), x), y), 1e-10);
      // A shared map keeps the angles between patches of different samples, own maps do not.
      const auto gram = [&](const at::Tensor& s) {
        return to_patches(s, p).select(1, 0).matmul(to_patches(s, p).select(1, 0).t());
      };
      if (per_sample) {
        EXPECT_GT(test::relative_error(gram(y), gram(x)), 1e-3);
      } else {
        EXPECT_LT(test::relative_error(gram(y), gram(x)), 1e-10);
      }
    }
  }
  const at::Tensor x =
      at::arange(32, at::kDouble)
          .view({1, 2, 4, 4});  // patch 1 of 2 x 2: channel 0 rows 0-1, columns 2-3; then channel 1
  EXPECT_TRUE(at::equal(to_patches(x, 2)[0][1],
                        at::tensor({2., 3., 6., 7., 18., 19., 22., 23.}, at::kDouble)));
  test::expect_error(ErrorKind::kConfig, "do not tile",
                     [] { PatchMap({{"cayley"}, 3}, {4, 8, 8}); });
  test::expect_error(ErrorKind::kConfig, "do not divide",
                     [] { PatchMap({{"cayley"}, 2, 3}, {4, 8, 8}); });
}

TEST(noise_patches, TheReferenceAdapterIsReproduced) {
  for (const std::int64_t p : {2, 4, 8}) {
    const ParameterSet t =
        read_safetensors(test::golden_onestep(cat("patch_p", p, ".safetensors"))).tensors;
    const PatchMap map({{"expm"}, p}, {4, 16, 16});
    const at::Tensor raw = t.at("raw").unsqueeze(0).clone().set_requires_grad(true);
    const at::Tensor eps = t.at("eps").clone().set_requires_grad(true);
    const at::Tensor out = map.apply(raw, eps);
    EXPECT_LT(test::relative_error(out.detach(), t.at("out")), 2e-5) << p;
    const at::Tensor q = map.map().matrix(raw.detach())[0];
    EXPECT_LT((p == 8 ? q.narrow(0, 0, 16) - t.at("Q_first16rows") : q - t.at("Q"))
                  .abs()
                  .max()
                  .item<double>(),
              1e-5);
    const auto g = torch::autograd::grad({(out * t.at("cot")).sum()}, {raw, eps});
    EXPECT_LT(test::relative_error(g[1], t.at("vjp_eps")), 2e-5);
    EXPECT_LT(test::relative_error(p == 8 ? g[0][0].narrow(0, 0, 8) : g[0][0],
                                   p == 8 ? t.at("vjp_raw_first8rows") : t.at("vjp_raw")),
              1e-3);
    if (p < 8) {
      EXPECT_LT((map.map().matrix(raw.detach().to(at::kDouble))[0] - t.at("Q.f64"))
                    .abs()
                    .max()
                    .item<double>(),
                1e-12);
    }
  }
}

}  // namespace tiltflow
