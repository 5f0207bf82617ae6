// Models, methods and rewards that a program brings itself, instead of a file or a name.
#include "tests/support.h"
#include "tiltflow/base/error.h"
#include "tiltflow/models/mlp/mlp.h"
#include "tiltflow/train/finetuning.h"
#include "tiltflow/train/run.h"

namespace tiltflow {
namespace {

// Basic Adjoint Matching that counts what it collects.
class Counted final : public FinetuneMethod {
 public:
  explicit Counted(int& collected) : collected_(collected) {}
  std::string name() const override { return "counted"; }
  MethodNeeds needs() const override { return method_.needs(); }
  double training_calls(const TransitionTable& table) const override {
    return method_.training_calls(table);
  }
  void begin_step(const FinetuneContext&, std::int64_t, std::int64_t) override {}
  Batch collect(const FinetuneContext& context, std::int64_t step, std::int64_t first,
                std::int64_t n, bool will_reuse) override {
    ++collected_;
    return method_.collect(context, step, first, n, will_reuse);
  }
  LossReport loss(const FinetuneContext& context, const Batch& batch, std::int64_t total) override {
    return method_.loss(context, batch, total);
  }
  void end_step(std::map<std::string, double>& metrics) override { method_.end_step(metrics); }

 private:
  BasicAdjointMatching method_;
  int& collected_;
};

class FirstCoordinate final : public Reward {
 public:
  const RewardInfo& info() const override { return info_; }
  at::Tensor score(const at::Tensor& samples, const RewardCondition&) const override {
    return samples.select(1, 0);
  }

 private:
  RewardInfo info_{"first-coordinate", true, ""};
};

std::unique_ptr<VelocityModel> small_network(const ModelRuntime& runtime) {
  MlpConfig config;
  config.hidden_size = 8;
  config.depth = 1;
  return make_mlp(config, init_mlp(config, RandomStreams(0)), {}, runtime);
}

// Two steps of a run that reads no file.
FinetuneConfig own_run(int& collected) {
  FinetuneConfig config;
  config.model.own = small_network;
  config.method.own = [&collected] { return std::make_unique<Counted>(collected); };
  config.reward = {own_reward(std::make_shared<FirstCoordinate>(), 2)};
  config.batch = 4;
  config.micro_batch = 2;
  config.sampler.steps = 3;
  config.evaluation.every = 0;
  config.evaluation.base_samples = 16;
  config.compute.workers = 1;
  config.train.steps = 2;
  return config;
}

std::string refusal(const FinetuneConfig& config) {
  try {
    set_up(config);
    return "";
  } catch (const Error& error) {
    return error.what();
  }
}

TEST(train_finetuning_own_parts, TrainLikeThoseFromFiles) {
  const test::TempDir dir;
  int collected = 0;
  const FinetuneSetup setup = set_up(own_run(collected));
  EXPECT_EQ(setup.config.method.name, "counted");
  EXPECT_EQ(setup.flow.path->name(), "linear");
  EXPECT_EQ(setup.config.reward[0].name, "first-coordinate");
  const at::Tensor x = at::ones({1, 2});
  EXPECT_EQ(setup.reward->score(x, {}).item<double>(), 2);
  tiltflow::Run run(dir / "run", "", false);
  const TrainResult result = finetune(setup, run);
  EXPECT_EQ(collected, 4);  // two pieces in each of two steps
  const at::Tensor& before = setup.flow.model->parameters().at("layers.1.weight");
  EXPECT_FALSE(at::equal(result.average.at("layers.1.weight"), before));
}

TEST(train_finetuning_own_parts, MeetTheChecksOfTheOthers) {
  int collected = 0;
  FinetuneConfig config = own_run(collected);
  config.buffer_passes = 2;
  EXPECT_NE(refusal(config).find("method counted needs fresh batches"), std::string::npos);
  config = own_run(collected);
  config.model.file = "base.safetensors";
  EXPECT_NE(refusal(config).find("own model beside model.file"), std::string::npos);
  EXPECT_EQ(collected, 0);
}

TEST(train_finetuning_own_parts, ANetworkMayPredictNoise) {
  FlowModelConfig config;
  config.own = small_network;
  config.path = "gvp";
  config.prediction = "noise";
  const FlowModel flow = load_flow_model(config);
  EXPECT_EQ(flow.path->name(), "gvp");
  const at::Tensor x = at::ones({1, 2});
  const at::Tensor noise = small_network({})->velocity(x, time_tensor(0.5, x), {});
  EXPECT_FALSE(at::equal(flow.model->velocity(x, time_tensor(0.5, x), {}), noise));
}

}  // namespace
}  // namespace tiltflow
