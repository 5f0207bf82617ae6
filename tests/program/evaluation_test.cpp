// eval, and options that no other test gives: each changes what it names.
#include <algorithm>

#include "tests/program/program.h"
#include "tiltflow/eval/quality.h"
#include "tiltflow/io/image.h"
#include "tiltflow/io/json_lines.h"
#include "tiltflow/io/npz.h"
#include "tiltflow/io/safetensors.h"
#include "tiltflow/nn/instruction_sets.h"
#include "tiltflow/tensor/random.h"

namespace tiltflow {
namespace {

using test::expect_message, test::Outcome, test::run, test::start, test::tiny, test::tiny_model;

}  // namespace

TEST(program_eval, GuidanceReachesTheConditionalSamples) {
  const std::string base =
      "eval --model assets/mnist-sit.safetensors --judge assets/mnist-judge.safetensors "
      "--reference assets/mnist-heldout-features.safetensors --n 16 --steps 3 --json ";
  const Outcome plain = run(base);
  const Outcome guided = run(base + "--guidance 3");
  EXPECT_EQ(plain.code, 0) << plain.err;
  EXPECT_EQ(guided.code, 0) << guided.err;
  const auto value = [](const Outcome& o, const std::string& key) {
    return split(o.out.substr(o.out.find(key)), ',')[0];
  };
  EXPECT_NE(value(plain, "frechet_conditional"), value(guided, "frechet_conditional"));
  EXPECT_EQ(value(plain, "frechet_unconditional"), value(guided, "frechet_unconditional"));
}

// Statistics files of any network, out and in, as safetensors and as npz; pictures of any size.
TEST(program_eval, StatisticsOfAnyNetwork) {
  const test::TempDir dir;
  const std::string at = dir.path().string();
  std::filesystem::create_directories(dir / "real/test/a");
  for (int i = 0; i < 120; ++i) {
    write_png(dir / cat("real/test/a/", i, ".png"),
              RandomStreams(1).uniform(Purpose::kProbe, 0, i, 1, {1, 30 + i % 7, 40})[0]);
  }
  const std::string ask =
      cat("eval --model ", tiny_model(), " --n 100 --steps 2 --sampler ode-euler --json ");
  const auto distance = [](const Outcome& o) {
    EXPECT_EQ(o.code, 0) << o.err;
    return nlohmann::json::parse(o.out).at("frechet_unconditional").get<double>();
  };
  const auto floor_of = [](const Outcome& o) {
    return nlohmann::json::parse(o.out).at("frechet_floor").get<double>();
  };
  const std::string data = cat("--features assets/mnist-judge.safetensors --data ", at,
                               "/real --format folder --size 28 ");
  const Outcome first = run(cat(ask, data, "--make-reference ", at, "/r.npz"));
  const double live = distance(first);
  const double again = distance(run(cat(ask, data, "--make-reference ", at, "/r.safetensors")));
  EXPECT_EQ(live, again);
  EXPECT_EQ(read_npz(dir / "r.npz").at("sigma").sizes().vec(), (std::vector<std::int64_t>{84, 84}));
  const double trace = read_npz(dir / "r.npz").at("sigma").trace().item<double>();
  EXPECT_NEAR(floor_of(first), trace / 100, 1e-9 * trace);
  for (const char* file : {"r.npz", "r.safetensors"}) {
    EXPECT_EQ(live, distance(run(cat(ask, "--features assets/mnist-judge.safetensors --reference ",
                                     at, "/", file))))
        << file;
  }
  expect_message(run(cat(ask, "--features pixels --reference ", at, "/r.npz")), 4,
                 "of 84 features");
  expect_message(run(cat(ask, "--features pixels --reference README.md")), 4, "is a text file");
  expect_message(run(cat(ask, "--features pixels --data ", at, "/real --format folder")), 4,
                 "give a size");
  expect_message(run(ask), 2, "--judge FILE");
}

TEST(program_eval, SeveralRunsInOneTable) {
  const test::TempDir dir;
  const std::string at = dir.path().string();
  for (const char* scale : {"4", "8"}) {
    const Outcome outcome = run(cat("finetune recipes/mnist-ink.toml", tiny(),
                                    "--set train.steps=2 --set check.ode=ode-euler --set "
                                    "check.ode_steps=2 --set reward[0].scale=",
                                    scale, " --out ", at, "/", scale));
    ASSERT_EQ(outcome.code, 0) << outcome.err;
  }
  const Outcome table = run(cat("eval --table --json --n 16 --seeds 1 --run ", at, "/4 --run ", at,
                                "/8 --out ", at, "/t"));
  ASSERT_EQ(table.code, 0) << table.err;
  const auto rows = nlohmann::json::parse(table.out).at("rows");
  EXPECT_EQ(rows.size(), 8u) << "other rewards: the base's rows differ";
  EXPECT_EQ(rows[4].at("run"), at + "/8");
  for (const char* name : {"comparison.json", "comparison.csv", "comparison.html"}) {
    EXPECT_TRUE(std::filesystem::exists(dir / "t" / name)) << name;
  }
  const Outcome twice = run(cat("eval --table --json --n 16 --seeds 1 --run ", at, "/4 --run ", at,
                                "/4 --out ", at, "/t"));
  EXPECT_EQ(nlohmann::json::parse(twice.out).at("rows").size(), 6u) << "the same base stands once";
  expect_message(run(cat("eval --run ", at, "/4 --run ", at, "/8")), 2, "--table");
  // The law of the run, unless something else is said, which the output repeats; the run's own
  // check stays.
  const Outcome changed = run(cat("eval --json --n 16 --steps 2 --set seed=5 --run ", at, "/4"));
  expect_message(changed, changed.code, "other than in the run: sampler.steps = 2 instead of 3");
  EXPECT_GE(nlohmann::json::parse(changed.out).at("other_than_in_the_run").size(), 4u)
      << changed.out;
  EXPECT_FALSE(std::filesystem::exists(dir / "4/check.json"));
  expect_message(run(cat("eval --run ", at, "/4 --guidance 2")), 2, "guidance.mode");
  expect_message(run(cat("eval --run ", at, "/4 --set check.judge=/nonexistent")), 4,
                 "/nonexistent");
}

// evaluation.ode: the reward of monitoring under a sampler of its own. memory_gb: the plan keeps
// inside it.
TEST(program_options, EvaluationSamplerMemoryAndGuidanceMode) {
  const test::TempDir dir;
  const std::string at = dir.path().string();
  const auto last = [&](const std::string& name, const std::string& flags, const std::string& key) {
    const Outcome outcome =
        run(cat("finetune recipes/mnist-ink.toml", tiny(),
                "--set train.steps=2 --set evaluation.every=2 ", flags, " --out ", at, "/", name));
    EXPECT_EQ(outcome.code, 0) << outcome.err;
    double value = 0;
    for (const auto& line : read_json_lines(dir / name / "metrics.jsonl")) {
      if (line.contains(key)) value = number_from_json(line[key]);
    }
    return value;
  };
  EXPECT_NE(last("ode2", "--set evaluation.ode=ode-euler --set evaluation.ode_steps=2",
                 "eval_ode_reward"),
            last("ode5", "--set evaluation.ode=ode-heun --set evaluation.ode_steps=5",
                 "eval_ode_reward"));
  const std::string labels = "--set labels.kind=uniform --set guidance.scale=2 ";
  const double none = last("g0", labels + "--set guidance.mode=none", "reward");
  const double sampling = last("g1", labels + "--set guidance.mode=sampling", "reward");
  const double trajectories = last("g2", labels + "--set guidance.mode=trajectories", "reward");
  EXPECT_EQ(none, sampling) << "guidance at sampling leaves training alone";
  EXPECT_NE(none, trajectories);
  expect_message(run("finetune recipes/mnist-ink.toml --dry-run --set micro_batch=0 --set "
                     "compute.memory_gb=0.001"),
                 3, "memory");
  expect_message(run("finetune recipes/mnist-ink.toml --dry-run --set micro_batch=0 --set "
                     "compute.memory_gb=8"),
                 0, "plan");
}

namespace {

// A network that is measured at once.
const char* const kSmallBench =
    " --json --batch 2 --micro-batch 1 --repeats 1 --workers 1 --model-arg input_size=16 "
    "--model-arg "
    "patch_size=4 --model-arg in_channels=1 --model-arg hidden_size=32 --model-arg depth=6 "
    "--model-arg num_heads=2 ";

}  // namespace

TEST(program_bench, EveryKindOfWorkIsMeasured) {
  for (const auto& [work, forwards] :
       {std::pair{"train-step", 3.0}, {"pretrain", 3.0}, {"sample", 3.0}}) {
    const Outcome outcome = run(cat("bench ", work, kSmallBench, "--steps 3"));
    ASSERT_EQ(outcome.code, 0) << outcome.err;
    const auto found = nlohmann::json::parse(outcome.out);
    EXPECT_EQ(found.at("network_evaluations_per_sample"), forwards) << work;
    EXPECT_GT(found.at("allocations").get<std::int64_t>(), 100);
  }
  // K = 6, n = 2: 21 evaluations with the rollout's graphs (a test of the method counts them), n
  // more without; 18 with strides of 3.
  const auto iteration = [&](const std::string& flags) {
    return nlohmann::json::parse(
        run(cat("bench am", kSmallBench, "--steps 6 --loss-steps 2 ", flags)).out);
  };
  const auto again = iteration("--keep-graphs false --graphs false");
  const auto coarse = iteration("--adjoint-stride 3 --activation-checkpointing true");
  EXPECT_EQ(again.at("network_evaluations_per_sample"), 23);
  EXPECT_EQ(coarse.at("network_evaluations_per_sample"), 18);
  EXPECT_GT(coarse.at("allocations").get<std::int64_t>(),
            again.at("allocations").get<std::int64_t>())
      << "blocks are computed again";
  EXPECT_GT(nlohmann::json::parse(run("bench gemm --json --workers 1").out)
                .at("copy_gb_per_second")
                .get<double>(),
            0);
  const auto startup = nlohmann::json::parse(start("bench startup --json --repeats 1").out);
  for (const char* command : {"help", "list", "config", "first_image"}) {
    EXPECT_GT(startup.at(cat(command, "_seconds_min")).get<double>(), 0) << command;
  }
}

// The kernels are those asked for.
TEST(program_bench, KernelsAndInstructionSets) {
  for (const char* work : {"vjp", "am"}) {
    for (const char* kernels : {"plain", "fused"}) {
      const Outcome outcome = run(cat("bench ", work, kSmallBench,
                                      "--steps 3 --loss-steps 2 --threads 1 --kernels ", kernels));
      ASSERT_EQ(outcome.code, 0) << outcome.err;
      const auto found = nlohmann::json::parse(outcome.out);
      EXPECT_EQ(found.at("bench"), work);
      EXPECT_EQ(found.at("kernels") == "plain", std::string(kernels) == "plain");
      EXPECT_GT(found.at("seconds_min").get<double>(), 0);
    }
  }
  expect_message(run("bench forward --device cuda:99"), 3, "is not usable");
  expect_message(run("bench forward --isa avx3"), 2, "'avx3' is unknown");
  for (const InstructionSet& set : instruction_sets()) {
    if (set.available && set.name != "sse4" && set.name != "avx2") continue;
    const Outcome restricted =
        start(cat("bench forward", kSmallBench, "--kernels fixed --isa ", set.name));
    if (!set.available) {
      expect_message(restricted, 2, cat("no ", set.name));
    } else {
      ASSERT_EQ(restricted.code, 0) << restricted.err;
      EXPECT_EQ(nlohmann::json::parse(restricted.out).at("kernels"),
                set.name == "sse4" ? "baseline" : "x86-64-v3");
    }
  }
}

// Fused kernels agree with plain ones without being them.
TEST(program_options, KernelsOfARun) {
  const test::TempDir dir;
  const auto tuned = [&](const std::string& name) {
    const Outcome outcome = run(cat("finetune recipes/mnist-ink.toml", tiny(),
                                    "--set train.steps=2 --set compute.kernels=", name, " --out ",
                                    dir.path().string(), "/", name));
    EXPECT_EQ(outcome.code, 0) << outcome.err;
    return read_safetensors(dir / name / "model.safetensors")
        .tensors.at("blocks.0.attn.qkv.weight");
  };
  const at::Tensor plain = tuned("plain");
  const at::Tensor fused = tuned("fused");
  EXPECT_FALSE(at::equal(plain, fused));
  EXPECT_LT(test::relative_error(fused, plain), 1e-3);
}

// Predictions, loss weights and training times of pretrain; time limits of sampling.
TEST(program_options, PretrainingAndSamplingChoices) {
  const test::TempDir dir;
  const std::string at = dir.path().string();
  std::filesystem::create_directories(dir / "pictures/train/a");
  for (int i = 0; i < 4; ++i) {
    write_png(dir / cat("pictures/train/a/", i, ".png"),
              RandomStreams(1).uniform(Purpose::kProbe, 0, i, 1, {3, 9, 12})[0]);
  }
  write_file_atomic(dir / "p.toml",
                    cat("batch = 4\n[data]\nformat = \"folder\"\nsize = 8\npath = \"", at,
                        "/pictures\"\n[model]\nargs = { input_size = 8, patch_size = 4, "
                        "in_channels = 3, hidden_size = 16, depth = 1, num_heads = 2, num_classes "
                        "= 1 }\n[train]\nsteps = 6\nlearning_rate = 1e-2\n"));
  const auto loss = [&](const std::string& name, const std::string& flags) {
    const Outcome outcome = run(cat("pretrain ", at, "/p.toml --out ", at, "/", name, " ", flags));
    EXPECT_EQ(outcome.code, 0) << outcome.err;
    return number_from_json(read_json_lines(dir / name / "metrics.jsonl").back().at("loss"));
  };
  const double plain = loss("v", "");
  const double noise = loss("n", "--set model.prediction=noise");
  const double weighted = loss("w", "--set model.prediction=noise --set loss_weight=velocity");
  const double inside = loss("e", "--set epsilon=0.05");
  EXPECT_NE(plain, noise);
  EXPECT_NE(noise, weighted);
  EXPECT_NE(plain, inside);
  const auto samples = [&](const std::string& flags) {
    const Outcome outcome =
        run(cat("sample --n 2 --steps 3 --no-png --overwrite --out ", at, "/s ", flags));
    EXPECT_EQ(outcome.code, 0) << outcome.err;
    return read_safetensors(dir / "s/samples.safetensors").tensors.at("samples");
  };
  const std::string model = cat("--model ", at, "/n/model.safetensors --sampler ode-euler ");
  EXPECT_FALSE(at::equal(samples(model), samples(model + "--epsilon 0.05")))
      << "noise prediction is singular at an end";
}

}  // namespace tiltflow
