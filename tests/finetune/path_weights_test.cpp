#include "tiltflow/finetune/path_weights.h"
#include "tests/finetune/control_bench.h"
#include "tests/support.h"
#include "tiltflow/verify/control_problems.h"

namespace tiltflow {
namespace {

using test::kSocStreams;

}  // namespace

TEST(finetune_path_weights, TemperedToTheBudget) {
  const at::Tensor logs = kSocStreams.normal(Purpose::kProbe, 0, 0, 0, 64, {}, at::kDouble) * 3;
  const auto divergence = [](const at::Tensor& w) {
    return (w * (w * static_cast<double>(w.size(0))).log()).sum().item<double>();
  };
  const PathWeights free = path_weights(logs, 0);
  const PathWeights tight = path_weights(logs, 0.2);
  const PathWeights loose = path_weights(logs, 10);
  EXPECT_EQ(free.tau, 1);
  EXPECT_EQ(loose.tau, 1);
  EXPECT_GT(divergence(free.weights), 0.5);
  EXPECT_NEAR(divergence(tight.weights), 0.2, 1e-9);
  EXPECT_NEAR(tight.weights.sum().item<double>(), 1, 1e-12);
  EXPECT_TRUE(at::allclose(tight.weights, at::softmax(logs * tight.tau, 0)));
  EXPECT_NEAR(divergence(path_weights(at::zeros({8}, at::kDouble), 0.1).weights), 0, 1e-12);
}

TEST(finetune_path_weights, TrustRegionsActInEveryMethodThatHasThem) {
  const ControlProblem p = ornstein_uhlenbeck(false, 10);
  const auto path = make_path("linear");
  const LabelSource labels = no_labels();
  Policy policy;
  policy.base = policy.tuned = p.drift;
  const FinetuneContext context{policy,      *p.reward, *path,         p.table,
                                kSocStreams, labels,    {p.dimension}, at::kDouble};
  const auto tempered = [&](FinetuneMethod& method) {
    const at::NoGradGuard no_grad;
    method.begin_step(context, 0, 0);
    return method.loss(context, method.collect(context, 0, 0, 32, false), 32)
        .metrics.averages()
        .at("tempered");
  };
  for (const double budget : {0.0, 0.05}) {
    SocMatchingConfig soc;
    soc.trust_region = budget;
    PathLossConfig losses;
    losses.trust_region = budget;
    EndpointConfig rwr;
    rwr.trust_region = budget;
    SocMatching matching("socm", soc), adjoint("socm-adjoint", soc);
    PathLoss entropy("cross-entropy", losses);
    EndpointRegression regression("rwr", rwr);
    for (FinetuneMethod* method :
         std::initializer_list<FinetuneMethod*>{&matching, &adjoint, &entropy, &regression}) {
      EXPECT_EQ(tempered(*method), budget > 0 ? 1 : 0) << method->name();
    }
  }
}

}  // namespace tiltflow
