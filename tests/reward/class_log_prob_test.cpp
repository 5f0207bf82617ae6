#include "tiltflow/reward/class_log_prob.h"
#include "tests/reward/reward_term.h"
#include "tests/support.h"
#include "tiltflow/models/model_file.h"
#include "tiltflow/reward/reward.h"
#include "tiltflow/reward/state_reward.h"

namespace tiltflow {
namespace {

using test::reward_term;

}  // namespace

TEST(reward_class_log_prob, LogProbabilitiesOfAJudge) {
  const test::TempDir dir;
  ClassifierConfig config;
  config.input_size = 8;
  config.width = 4;
  config.features = 6;
  config.num_classes = 3;
  save_classifier(dir / "j.safetensors", config, init_classifier(config, RandomStreams(1)));
  RewardTerm t = reward_term("class-log-prob", 1);
  t.judge = (dir / "j.safetensors").string();
  t.label = 2;
  const at::Tensor images = at::rand({4, 1, 8, 8});
  const auto judge = load_classifier(t.judge);
  EXPECT_LT((make_reward(t)->score(images, {}) - judge->logits(images).log_softmax(1).select(1, 2))
                .abs()
                .max()
                .item<double>(),
            1e-6);
  EXPECT_LT(check_reward(StateReward(make_reward(t), pixel_decoder()), at::randn({4, 1, 8, 8}), {},
                         RandomStreams(3)),
            0.05);
  t.label = -1;
  const at::Tensor labels = at::tensor(std::vector<std::int64_t>{0, 1, 2, 0});
  EXPECT_LT(
      (make_reward(t)->score(images, {labels})[1] - judge->logits(images).log_softmax(1)[1][1])
          .abs()
          .item<double>(),
      1e-6);
  test::expect_error(ErrorKind::kConfig, "conditional samples",
                     [&] { make_reward(t)->score(images, {}); });
  t.label = 3;
  test::expect_error(ErrorKind::kConfig, "out of range", [&] { make_reward(t); });
}

}  // namespace tiltflow
