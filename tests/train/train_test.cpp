#include <malloc.h>

#include <cmath>
#include <csignal>

#include "tests/same_bytes.h"
#include "tests/support.h"
#include "tests/train/small_model.h"
#include "tiltflow/base/file.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/models/model_file.h"
#include "tiltflow/models/sit/sit.h"
#include "tiltflow/tensor/parallel.h"
#include "tiltflow/train/finetuning.h"
#include "tiltflow/train/memory_plan.h"
#include "tiltflow/train/pretraining.h"
#include "tiltflow/train/pretraining_run.h"

namespace tiltflow {
namespace {

// A small digit-like model on disk and a configuration that fine-tunes it in seconds.
FinetuneConfig ink_run(const test::TempDir& dir, const std::string& policy = "full") {
  test::save_small_sit(dir / "base.safetensors");
  FinetuneConfig config;
  config.model.file = (dir / "base.safetensors").string();
  config.batch = 6;
  config.item = 2;
  config.sampler.steps = 5;
  config.method.adjoint = adjoint_matching_preset("exact", 5);
  config.method.adjoint.loss_steps = 3;
  config.method.adjoint.clip_quantile = 0.9;
  config.policy.kind = policy;
  config.reward = {RewardTerm{}};
  config.reward[0].scale = 20;
  config.evaluation.every = 3;
  config.evaluation.samples = 4;
  config.evaluation.base_samples = 16;
  config.compute.workers = 2;
  config.train.steps = 7;
  config.train.average_decay = 0.9;
  config.train.checkpoint_every = 2;
  return config;
}

std::string weights_of(const std::filesystem::path& run) {
  return read_file(run / "model.safetensors");
}

std::string run_to_end(const FinetuneConfig& config, const std::filesystem::path& out,
                       bool resume = false) {
  const FinetuneSetup setup = set_up(config);
  tiltflow::Run run(out, "x", resume);
  finetune(setup, run);
  return weights_of(out);
}

// A fatal error in a hook stands for a kill.
void die_after(std::int64_t last, const FinetuneConfig& config, const std::filesystem::path& out,
               double log_z = 0) {
  const FinetuneSetup setup = set_up(config);
  tiltflow::Run run(out, "x", false);
  FinetuneObjective objective(setup, make_policy(setup.flow, config.policy, 0),
                              make_method(config.method), log_z);
  const ParameterSet& start = objective.trainable();
  run.log(0, {{"base_reward", 0},
              {"base_reward_se", 0},
              {"log_z", log_z},
              {"log_z_se", 0},
              {"base_ess", 1}});
  run.save({0,
            {{"weights", start},
             {"average", start},
             {"optimizer", AdamW(config.train.optimizer, start).state()}}},
           2);
  TrainHooks hooks;
  hooks.after_step = [last](std::int64_t step, const ParameterSet&) {
    if (step == last) fail(ErrorKind::kFailure, "killed");
  };
  EXPECT_THROW(train(config.train, objective, run, hooks), Error);
}

// Killed after five steps and resumed: the same bytes as without.
void expect_resumes(const FinetuneConfig& config, const test::TempDir& dir) {
  const std::string whole = run_to_end(config, dir / "whole");
  die_after(5, config, dir / "killed");
  EXPECT_TRUE(test::same_bytes(run_to_end(config, dir / "killed", true), whole));
}

}  // namespace

TEST(train_optimizer, StepsEqualTheOfficialOnes) {
  const auto loaded =
      load_velocity_model(test::golden("sit_a_ema.safetensors"), {{"num_heads", "4"}});
  const ParameterSet g = read_safetensors(test::golden("train_steps.safetensors")).tensors;
  const Policy policy = full_policy(*loaded.model);
  OptimizerConfig config;
  AdamW optimizer(config, policy.trainable);
  const auto path = make_path("linear");
  for (std::int64_t step = 0; step < 3; ++step) {
    const at::AutoGradMode grad(true);
    const at::Tensor t = g.at("u")[step];
    const at::Tensor x0 = g.at("x0")[step];
    const at::Tensor x1 = g.at("x1")[step];
    const at::Tensor time = t.view({-1, 1, 1, 1});
    const at::Tensor v = policy.tuned->velocity(time * x1 + (1 - time) * x0, t, {g.at("y")[step]});
    const at::Tensor loss = (v - (x1 - x0)).square().flatten(1).mean(1).mean();
    EXPECT_NEAR(loss.item<double>() / g.at("loss")[step].item<double>(), 1, 1e-5);
    std::vector<at::Tensor> gradients =
        torch::autograd::grad({loss}, policy.trainable.tensors(), {}, false, false, true);
    for (std::size_t i = 0; i < gradients.size(); ++i) {
      if (!gradients[i].defined()) gradients[i] = at::zeros_like(policy.trainable.tensors()[i]);
    }
    EXPECT_NEAR(clip_gradients(gradients, 0) / g.at("grad_norm")[step].item<double>(), 1, 1e-4);
    optimizer.step(gradients, 1e-3);
  }
  for (const auto& [name, tensor] : g) {
    if (name.rfind("after.", 0) != 0) continue;
    at::Tensor found = policy.trainable.at(name.substr(6)).detach();
    at::Tensor expected = tensor;
    // The gradient of a key bias is zero (softmax ignores it); Adam turns its rounding into steps
    // of any sign.
    if (name == "after.blocks.0.attn.qkv.bias") {
      found = at::cat({found.narrow(0, 0, 40), found.narrow(0, 80, 40)});
      expected = at::cat({expected.narrow(0, 0, 40), expected.narrow(0, 80, 40)});
    }
    EXPECT_LT(test::relative_error(found, expected), 1e-4) << name;
  }
}

// Losses, weights, time intervals and gradients of SiT for every path, prediction and weighting.
TEST(train_pretrain, LossesEqualTheOfficialOnes) {
  const ParameterSet g = read_safetensors(test::golden("transport_losses.safetensors")).tensors;
  const auto loaded =
      load_velocity_model(test::golden("sit_a_ema.safetensors"), {{"num_heads", "4"}});
  const at::Tensor a = loaded.model->parameters().at("blocks.0.attn.qkv.bias");
  const at::Tensor b = loaded.model->parameters().at("final_layer.linear.bias");
  a.set_requires_grad(true);
  b.set_requires_grad(true);
  int compared = 0;
  for (const auto& [key, expected] : g) {
    const std::vector<std::string> part = split(key, '.');
    if (part.size() != 4 || part[3] != "loss") continue;
    const auto lower = [](std::string text) {
      for (char& c : text) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
      return text;
    };
    const auto path = make_path(lower(part[0]));
    FlowMatchingOptions options;
    options.prediction = part[1];
    options.loss_weight = lower(part[2]);
    const std::string stem = key.substr(0, key.size() - 4);
    const at::Tensor t = training_times(*path, options, g.at("u"));
    EXPECT_LT((t - g.at(stem + "t")).abs().max().item<double>(), 1e-6) << key;
    const at::Tensor losses =
        flow_matching_losses(*loaded.model, *path, options, g.at("x0"), g.at("x1"), t, {g.at("y")});
    // fp32 of the reference cancels in VP's coefficients near t = 1
    EXPECT_LT(test::relative_error(losses, expected), part[0] == "VP" ? 2e-4 : 1e-5) << key;
    const auto gradients = torch::autograd::grad({losses.mean()}, {a, b});
    EXPECT_LT(test::relative_error(gradients[0], g.at(stem + "grad.blocks.0.attn.qkv.bias")), 2e-4)
        << key;
    EXPECT_LT(test::relative_error(gradients[1], g.at(stem + "grad.final_layer.linear.bias")), 2e-4)
        << key;
    ++compared;
  }
  EXPECT_EQ(compared, 21);
}

TEST(train_optimizer, Schedules) {
  OptimizerConfig c;
  c.warmup = 4;
  c.final_fraction = 0.1;
  EXPECT_NEAR(schedule_factor(c, 0, 100), 0.25, 1e-12);
  EXPECT_NEAR(schedule_factor(c, 4, 100), 1, 1e-12);
  EXPECT_NEAR(schedule_factor(c, 100, 100), 0.1, 1e-12);
  c.schedule = "linear";
  EXPECT_NEAR(schedule_factor(c, 52, 100), 0.55, 1e-12);
  c.schedule = "constant";
  EXPECT_NEAR(schedule_factor(c, 99, 100), 1, 1e-12);
}

TEST(train_optimizer, ClippingKeepsTheDirection) {
  std::vector<at::Tensor> g{at::full({4}, 3.0), at::full({4}, 4.0)};
  EXPECT_NEAR(clip_gradients(g, 1), 10, 1e-6);
  EXPECT_NEAR(g[0][0].item<double>(), 0.3, 1e-6);
  EXPECT_NEAR(g[1][0].item<double>(), 0.4, 1e-6);
}

TEST(train_finetune, ResumeIsBitExact) {
  for (const char* policy : {"full", "lora"}) {
    const test::TempDir dir;
    FinetuneConfig config = ink_run(dir, policy);
    const std::string whole = run_to_end(config, dir / "whole");
    die_after(5, config, dir / "killed");
    EXPECT_TRUE(test::same_bytes(run_to_end(config, dir / "killed", true), whole)) << policy;
    // steps were not logged twice
    std::map<std::int64_t, int> losses;
    for (const auto& line : read_json_lines(dir / "killed/metrics.jsonl")) {
      if (line.contains("loss")) ++losses[line["step"].get<std::int64_t>()];
    }
    EXPECT_EQ(losses.size(), 7u);
    for (const auto& [step, count] : losses) EXPECT_EQ(count, 1) << step;
  }
}

// Every method with both policies: it trains, and a run that is stopped and continued ends with the
// same bytes.
TEST(train_finetune, EveryMethodTrainsAndResumes) {
  for (const MethodListing& m : method_listing()) {
    for (const char* policy : {"full", "lora"}) {
      const test::TempDir dir;
      FinetuneConfig config = ink_run(dir, policy);
      config.method.name = m.name;
      if (m.name == "reciprocal-adjoint-matching" || m.name == "value-regression") {
        continue;  // another base, another policy: below
      }
      config.method.policy_gradient.advantage.group = config.method.endpoint.advantage.group = 2;
      config.evaluation.every = 0;
      config.train.steps = 4;
      const std::string whole = run_to_end(config, dir / "whole");
      const ParameterSet before = read_safetensors(dir / "base.safetensors").tensors;
      const ParameterSet after = read_safetensors(dir / "whole/model.safetensors").tensors;
      double moved = 0;
      for (const auto& [name, tensor] : before) {
        moved = std::max(moved, (tensor - after.at(name)).abs().max().item<double>());
      }
      EXPECT_GT(moved, 0) << m.name << " " << policy;
      std::filesystem::copy(dir / "whole", dir / "stopped",
                            std::filesystem::copy_options::recursive);
      std::filesystem::remove_all(dir / "stopped/checkpoints/step-000004");
      std::filesystem::remove(dir / "stopped/model.safetensors");
      EXPECT_TRUE(test::same_bytes(run_to_end(config, dir / "stopped", true), whole))
          << m.name << " " << policy;
    }
  }
}

// The replay buffer is part of what a resume brings back.
TEST(train_finetune, ReplayResumes) {
  const test::TempDir dir;
  FinetuneConfig config = ink_run(dir);
  config.model = {};
  config.model.family = "gaussian-mixture";
  config.model.args = {{"means", "0 0"}};
  config.policy.kind = "control";
  config.policy.control.kind = "mlp";
  config.policy.control.width = 8;
  RewardTerm reward;
  reward.name = "log-density";
  reward.over_normal = true;
  reward.args = {{"means", "1 0; -1 0"}, {"deviations", "0.6"}};
  config.reward = {reward};
  config.labels = {};
  config.guidance = {};
  config.evaluation.every = 0;
  config.train.steps = 7;
  config.method.name = "reciprocal-adjoint-matching";
  config.method.reciprocal.replay.refresh = 3;
  const std::string whole = run_to_end(config, dir / "whole");
  die_after(5, config, dir / "killed");
  EXPECT_TRUE(test::same_bytes(run_to_end(config, dir / "killed", true), whole));
}

TEST(train_finetune, ValueRegressionResumesAndRefusesOtherPolicies) {
  const test::TempDir dir;
  FinetuneConfig config = ink_run(dir, "control");
  config.policy.control = {"potential", 8, 2};
  config.method.name = "value-regression";
  config.method.value.replay.refresh = 3;
  config.evaluation.every = 0;
  const std::string whole = run_to_end(config, dir / "whole");
  double log_z = 0;  // scales the weights: a resume reads the first start's
  for (const auto& line : read_json_lines(dir / "whole/metrics.jsonl")) {
    if (line.contains("log_z")) log_z = line["log_z"].get<double>();
  }
  die_after(5, config, dir / "killed", log_z);
  EXPECT_TRUE(test::same_bytes(run_to_end(config, dir / "killed", true), whole));
  config.policy.kind = "full";
  test::expect_error(ErrorKind::kConfig, "fits a scalar network", [&] { set_up(config); });
  config.method.name = "reciprocal-adjoint-matching";
  test::expect_error(ErrorKind::kConfig, "standard normal base", [&] { set_up(config); });
  config.method.name = "draft";
  config.buffer_passes = 2;
  test::expect_error(ErrorKind::kConfig, "buffer_passes must be 1", [&] { set_up(config); });
}

// The learned reward, its optimiser and its buffer, too.
TEST(train_finetune, SurrogateResumes) {
  const test::TempDir dir;
  FinetuneConfig config = ink_run(dir);
  config.surrogate.every = 3;
  config.surrogate.samples = 8;
  config.surrogate.fits = 3;
  config.surrogate.width = 8;
  expect_resumes(config, dir);
}

// The same for the classifier of mode-preserving rewards.
TEST(train_finetune, ModesResume) {
  const test::TempDir dir;
  FinetuneConfig config = ink_run(dir);
  config.method.name = "draft";
  config.sampler.name = "half-noise";
  config.buffer_passes = 1;
  config.modes.codes = 3;
  config.modes.every = 2;
  config.modes.samples = 8;
  config.modes.fits = 3;
  config.modes.width = 8;
  expect_resumes(config, dir);
}

// Memory in use after 500 iterations is what it was after 50: nothing is kept that grows.
TEST(train_finetune, MemoryStaysConstant) {
  const test::TempDir dir;
  FinetuneConfig config = ink_run(dir);
  config.batch = 2;
  config.evaluation.every = 0;
  config.train.checkpoint_every = 1000;
  config.compute.workers = 1;
  const auto in_use_after = [&](std::int64_t steps) {
    config.train.steps = steps;
    run_to_end(config, dir / cat("run-", steps));
    const struct mallinfo2 memory = mallinfo2();
    return static_cast<double>(memory.uordblks + memory.hblkhd);
  };
  in_use_after(20);  // what is made once
  const double few = in_use_after(50);
  const double many = in_use_after(500);
  EXPECT_LT(many - few, 100e3) << "bytes; 450 iterations more";
}

TEST(train_finetune, WorkersAndItemsDoNotMatter) {
  const test::TempDir dir;
  FinetuneConfig config = ink_run(dir);
  const std::string two = run_to_end(config, dir / "two");
  config.compute.workers = 1;
  EXPECT_TRUE(test::same_bytes(run_to_end(config, dir / "one"), two))
      << "the number of workers changed the result";
  config.item = 6;  // another order of summation, the same sum
  config.method.adjoint.clip_quantile = 0;
  run_to_end(config, dir / "whole");
  config.item = 1;
  run_to_end(config, dir / "single");
  const ParameterSet a = read_safetensors(dir / "whole/model.safetensors").tensors;
  const ParameterSet b = read_safetensors(dir / "single/model.safetensors").tensors;
  for (const auto& [name, tensor] : a) {
    EXPECT_LT((tensor - b.at(name)).abs().max().item<double>(), 1e-3) << name;
  }
  set_thread_policy({1, 1});
}

TEST(train_finetune, EvaluationsPerIterationAreLogged) {
  const test::TempDir dir;
  for (const auto& [policy, backward] : {std::pair{"full", 2}, {"lora", 1}}) {
    const FinetuneConfig config = ink_run(dir, policy);
    run_to_end(config, dir / policy);
    for (const auto& line : read_json_lines(dir / policy / "metrics.jsonl")) {
      if (line.contains("evaluations")) {
        EXPECT_NEAR(line["evaluations"].get<double>(), 5 + 2 * 4 + 1 + 3 * backward, 1e-9);
      }
    }
  }
}

// The table of docs/methods.md: 5 sampler steps, 4 noisings; a backward pass counts twice.
TEST(train_finetune, EvaluationsOfEveryMethodAreThoseDocumented) {
  const std::map<std::string, double> expected{
      {"discrete-adjoint", 10 + 2 * 5},
      {"log-variance", 10 + 2 * 5},
      {"trajectory-balance", 10 + 2 * 5},
      {"cross-entropy", 10 + 2 * 5},
      {"flow-grpo", 10 + 2 * 5},
      {"rwr", 9 + 2 * 4},
      {"best-of-group", 9 + 2 * 4},
      {"diffusion-nft", 9 + 2 * 4},
      {"advantage-flow", 9 + 2 * 4},
      {"ram", 13 + 2 * 4},
      {"dpo", 13 + 2 * 4},
      {"draft", 5 + 2},
      {"basic-adjoint-matching", 5 + 1 + 2 * 2 * 4 + 2 * 5},
      {"efficient-adjoint-matching", 5 + 1 + 4 + 2 * 4},
      {"draft-lv", 7 + 2 * 3},
      {"continuous-adjoint", 5 + 2 * 2 * 5 + 2 * 5},
      {"socm", 6 + 2 * 4 + 2 * 5},
      {"socm-adjoint", 6 + 2 * 4 + 2 * 5},
      {"variance", 10 + 2 * 5},
      {"grpo-guard", 10 + 2 * 5},
      {"advantage-weighted-matching", 9 + 2 * 4},
      {"alignprop", 5 + 2 * 3},
      {"leap-align", 7 + 2 * 2}};
  const test::TempDir dir;
  for (const auto& [name, evaluations] : expected) {
    FinetuneConfig config = ink_run(dir);
    config.method.name = name;
    config.method.policy_gradient.advantage.group = config.method.endpoint.advantage.group = 2;
    config.evaluation.every = 0;
    config.train.steps = 1;
    run_to_end(config, dir / name);
    for (const auto& line : read_json_lines(dir / name / "metrics.jsonl")) {
      if (line.contains("evaluations")) {
        EXPECT_NEAR(line["evaluations"].get<double>(), evaluations, 1e-9) << name;
      }
    }
  }
}

TEST(train_finetune, BufferReusesTrajectoriesAndLogsEss) {
  const test::TempDir dir;
  FinetuneConfig config = ink_run(dir);
  config.buffer_passes = 3;
  config.train.steps = 6;
  run_to_end(config, dir / "run");
  int fresh = 0;
  int reused = 0;
  for (const auto& line : read_json_lines(dir / "run/metrics.jsonl")) {
    if (!line.contains("ess")) continue;
    (line["evaluations"].get<double>() > 12 ? fresh : reused) += 1;
    EXPECT_GT(line["ess"].get<double>(), 0);
    EXPECT_LE(line["ess"].get<double>(), 1 + 1e-6);
  }
  EXPECT_EQ(fresh, 2);
  EXPECT_EQ(reused, 4);
}

TEST(train_memory, PiecesShrinkAndActivationsAreRecomputedBeforeItFails) {
  const auto model = create_velocity_model({"sit",
                                            {{"input_size", "16"},
                                             {"in_channels", "4"},
                                             {"hidden_size", "64"},
                                             {"depth", "6"},
                                             {"num_heads", "4"},
                                             {"num_classes", "3"},
                                             {"patch_size", "2"}}},
                                           0);
  const MemoryNeed need = memory_need(*model, 1e5, 20);
  EXPECT_GT(need.activations, 3 * need.checkpointed);
  const MemoryPlan roomy = plan_memory(need, 12, 4, 2, 64e9);
  EXPECT_EQ(roomy.item, 6) << "every worker has a piece";
  EXPECT_FALSE(roomy.checkpointing);
  const double base = roomy.bytes - need.activations * 4 * 2 * 6;
  const MemoryPlan tight = plan_memory(need, 12, 4, 2, base + need.activations * 4 * 2 * 2.5);
  EXPECT_TRUE(tight.checkpointing);
  EXPECT_GE(tight.item, 4);
  EXPECT_LE(tight.bytes, tight.limit);
  test::expect_error(ErrorKind::kConfig, "one trajectory needs about",
                     [&] { plan_memory(need, 12, 4, 2, base); });
}

// item = 0: the set-up carries what was planned.
TEST(train_memory, ItemZeroFollowsThePlan) {
  const test::TempDir dir;
  FinetuneConfig config = ink_run(dir);
  config.item = 0;
  const FinetuneSetup planned = set_up(config);
  EXPECT_GE(planned.config.item, 1);
  EXPECT_LE(planned.config.item, config.batch);
}

TEST(train_pretrain, FlowMatchingLearnsAndSamplesEveryImageOnce) {
  ImageDataset data;
  data.images = at::zeros({64, 1, 8, 8}, at::kByte);
  data.images.narrow(0, 0, 32).fill_(255);
  data.labels = at::cat({at::zeros({32}, at::kLong), at::ones({32}, at::kLong)});
  data.class_names = {"white", "black"};
  BatchOrder order(64, 16, RandomStreams(1));
  at::Tensor seen = at::zeros({64}, at::kLong);
  for (std::int64_t step = 0; step < 4; ++step) {
    seen.index_add_(0, order.indices(step), at::ones({16}, at::kLong));
  }
  EXPECT_TRUE(at::equal(seen, at::ones({64}, at::kLong)));

  SitConfig c;
  c.input_size = 8;
  c.patch_size = 4;
  c.in_channels = 1;
  c.hidden_size = 16;
  c.depth = 1;
  c.num_heads = 2;
  c.num_classes = 2;
  c.learn_sigma = false;
  const test::TempDir dir;
  tiltflow::Run run(dir / "r", "", false);
  FlowMatchingObjective objective(make_sit(c, init_sit(c, RandomStreams(1))), make_path("linear"),
                                  data, {16, 8, 0.1, "uniform"}, 1);
  TrainConfig config;
  config.steps = 60;
  config.optimizer.learning_rate = 1e-2;
  train(config, objective, run, {});
  const auto lines = read_json_lines(dir / "r/metrics.jsonl");
  EXPECT_LT(lines.back()["loss"].get<double>(), 0.6 * lines.front()["loss"].get<double>());
}

// Added blocks are the identity at the start; anything else that does not fit is refused.
TEST(train_pretrain, ADeeperModelStartsAsTheShallowerOne) {
  const test::TempDir dir;
  ink_run(dir);  // writes base.safetensors, one block
  write_file_atomic(
      dir / "train-images-idx3-ubyte",
      std::string("\0\0\x08\x03\0\0\0\x02\0\0\0\x08\0\0\0\x08", 16) + std::string(2 * 8 * 8, '\0'));
  write_file_atomic(dir / "train-labels-idx1-ubyte",
                    std::string("\0\0\x08\x01\0\0\0\x02\0\x01", 10));
  PretrainConfig config;
  config.data.path = dir.path().string();
  config.model.init = (dir / "base.safetensors").string();
  config.model.args = {{"input_size", "8"},   {"patch_size", "4"},     {"in_channels", "1"},
                       {"hidden_size", "16"}, {"depth", "3"},          {"num_heads", "2"},
                       {"num_classes", "3"},  {"learn_sigma", "false"}};
  const PretrainSetup setup = set_up(config);
  const auto shallow = load_velocity_model(config.model.init, {}).model;
  const at::Tensor x = RandomStreams(4).normal(Purpose::kProbe, 0, 0, 0, 5, {1, 8, 8});
  const at::Tensor t = at::linspace(0, 1, 5);
  const Condition labels{at::tensor(std::vector<std::int64_t>{0, 1, 2, 3, 0}, at::kLong)};
  EXPECT_LT((setup.model->velocity(x, t, labels) - shallow->velocity(x, t, labels))
                .abs()
                .max()
                .item<double>(),
            1e-6)
      << "rounding of fp32 products";
  EXPECT_GT(setup.model->parameters().numel(), shallow->parameters().numel());
  config.model.args["hidden_size"] = "32";
  EXPECT_THROW(set_up(config), Error);
}

}  // namespace tiltflow
