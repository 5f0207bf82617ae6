// The program as a user meets it: exit codes, one clear message, nothing half-written.
#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>

#include "tests/program/program.h"
#include "tests/same_bytes.h"
#include "tiltflow/io/image.h"
#include "tiltflow/io/json_lines.h"
#include "tiltflow/io/torch_file.h"
#include "tiltflow/policy/lora.h"
#include "tiltflow/tensor/random.h"

namespace tiltflow {
namespace {

using test::expect_message, test::kShort, test::Outcome, test::run, test::shell, test::start,
    test::tiny, test::tiny_model;

}  // namespace

TEST(program_help, HelpIsOnStdoutAndMistakesAreUsageErrors) {
  EXPECT_EQ(run("--help").code, 0);
  EXPECT_NE(run("finetune --help").out.find("--resume"), std::string::npos);
  EXPECT_EQ(run("").code, 2);
  expect_message(run("fintune x.toml"), 2, "did you mean 'finetune'");
  EXPECT_EQ(run("verify --suite huge").code, 2);
  expect_message(run("verify --only nothing-like-this"), 2, "no task of the suite");
  EXPECT_NE(run("verify --only \"limits, memoryless\"").out.find("PASSED: 4 of 4"),
            std::string::npos);
  const Outcome methods = run("verify --suite methods --only \"identity: d\" --json");
  EXPECT_EQ(methods.code, 0) << methods.out;
  EXPECT_NE(methods.out.find("\"reward_gradient\":true"), std::string::npos);
  EXPECT_EQ(run("list rewards").code, 0);
  EXPECT_NE(run("list methods").out.find("basic-adjoint-matching "),
            std::string::npos);  // names of any length stay words
  EXPECT_NE(run("config show recipes/mnist-ink.toml --set seed=4").out.find("--set"),
            std::string::npos);
}

TEST(program_recipes, EveryRecipePassesADryRun) {
  const test::TempDir dir;  // blank digits stand for the data
  const std::string digits = std::string("\0\0\x08\x03\0\0\0\x80\0\0\0\x1c\0\0\0\x1c", 16) +
                             std::string(128 * 28 * 28, '\0');
  std::string labels("\0\0\x08\x01\0\0\0\x80", 8);
  for (char i = 0; i < 127; ++i) labels += static_cast<char>(i % 10);
  labels += '\0';
  for (const char* split : {"train", "t10k"}) {
    write_file_atomic(dir / cat(split, "-images-idx3-ubyte"), digits);
    write_file_atomic(dir / cat(split, "-labels-idx1-ubyte"), labels);
  }
  int count = 0;
  for (const auto& entry : std::filesystem::directory_iterator(test::source_dir() / "recipes")) {
    const std::string name = entry.path().filename().string();
    if (starts_with(name, "onestep") || name.find("cifar10") != std::string::npos) {
      continue;  // onestep_test: they need a generator or other data
    }
    const bool pretrain = starts_with(name, "pretrain");
    const bool continued = read_file(entry.path()).find("init = ") != std::string::npos;
    const bool taught = read_file(entry.path()).find("teacher = ") != std::string::npos;
    const std::string set = cat(
        pretrain ? cat(" --set data.path=", dir.path().string()) : "",
        continued ? " --set model.init=assets/mnist-sit.safetensors --set model.args.depth=10" : "",
        taught ? " --set model.teacher=assets/mnist-sit.safetensors" : "");
    const Outcome outcome = run(cat(pretrain                       ? "pretrain "
                                    : starts_with(name, "compare") ? "compare "
                                                                   : "finetune ",
                                    entry.path().string(), " --dry-run", set));
    EXPECT_EQ(outcome.code, 0) << entry.path() << outcome.err;
    EXPECT_EQ(run(cat("config show ", entry.path().string(), set)).code, 0) << entry.path();
    ++count;
  }
  EXPECT_GE(count, 4);
  expect_message(run("pretrain recipes/pretrain-mnist.toml --dry-run --set data.path=/nonexistent"),
                 4, "not found");
}

// Through every format and back: the same tensors.
TEST(program_convert, FormatsAndTypes) {
  const test::TempDir dir;
  const std::string at = dir.path().string();
  for (const std::string& step : {std::string("assets/mnist-sit.safetensors ") + at + "/a.pt",
                                  at + "/a.pt " + at + "/b.safetensors.index.json --shard-gb 0.001",
                                  at + "/b.safetensors.index.json " + at + "/c.safetensors",
                                  at + "/c.safetensors " + at + "/d.safetensors --dtype bf16"}) {
    const Outcome outcome = run("convert " + step);
    EXPECT_EQ(outcome.code, 0) << outcome.err;
  }
  const ParameterSet before =
      read_safetensors(test::source_dir() / "assets/mnist-sit.safetensors").tensors;
  const ParameterSet after = read_safetensors(dir / "c.safetensors").tensors;
  const ParameterSet brain = read_safetensors(dir / "d.safetensors").tensors;
  EXPECT_EQ(before.size(), after.size());
  for (const auto& [name, tensor] : before) {
    EXPECT_TRUE(at::equal(tensor, after.at(name))) << name;
    EXPECT_TRUE(at::equal(tensor.to(at::kBFloat16), brain.at(name))) << name;
  }
  expect_message(run("convert assets/mnist-sit.safetensors " + at + "/x.gguf"), 2,
                 "does not say which format");
  expect_message(run("convert README.md " + at + "/x.pt"), 4, "is a text file");
  EXPECT_FALSE(std::filesystem::exists(dir / "x.pt"));
}

// Parts, shards and resumption change nothing about the samples.
TEST(program_sample, PartsShardsAndResumption) {
  const test::TempDir dir;
  const std::string at = dir.path().string();
  const std::string ask = cat("sample --model ", tiny_model(),
                              " --n 7 --steps 2 --labels 3,5 --sampler ode-euler --part 2 ");
  EXPECT_EQ(run(cat(ask, "--out ", at, "/whole")).code, 0);
  const at::Tensor whole =
      read_safetensors(dir / "whole/samples.safetensors").tensors.at("samples");
  EXPECT_TRUE(std::filesystem::exists(dir / "whole/000006.png"));
  EXPECT_TRUE(std::filesystem::exists(dir / "whole/grid.png"));
  EXPECT_FALSE(std::filesystem::exists(dir / "whole/parts"));
  EXPECT_EQ(run(cat(ask, "--shard 1/2 --out ", at, "/shared")).code, 0);
  EXPECT_FALSE(std::filesystem::exists(dir / "shared/samples.safetensors"))
      << "the other half is missing";
  EXPECT_EQ(run(cat(ask, "--shard 0/2 --out ", at, "/shared")).code, 0);
  EXPECT_TRUE(
      at::equal(read_safetensors(dir / "shared/samples.safetensors").tensors.at("samples"), whole));
  // A part that is there is kept, whatever it holds: that is what resuming means.
  EXPECT_EQ(run(cat(ask, "--shard 1/2 --out ", at, "/again")).code, 0);
  const Outcome resumed = run(cat(ask, "--resume --out ", at, "/again"));
  expect_message(resumed, 0, "3 samples were there already");  // parts 1 and 3
  EXPECT_TRUE(
      at::equal(read_safetensors(dir / "again/samples.safetensors").tensors.at("samples"), whole));
  expect_message(run(cat(ask, "--resume --out ", at, "/again")), 0,
                 "7 samples were there already");  // finished: nothing is drawn
  expect_message(run(cat(ask, "--rtol 0.5 --resume --out ", at, "/again")), 3,
                 "holds samples of another request");
  expect_message(run(cat(ask, "--seed 1 --resume --out ", at, "/again")), 3,
                 "holds samples of another request");
  expect_message(run(cat(ask, "--shard 2/2 --out ", at, "/no")), 2, "expected I/N");
  EXPECT_EQ(run(cat(ask, "--pack npz --no-png --first 3 --out ", at, "/packed")).code, 0);
  EXPECT_EQ(read_file(dir / "packed/samples.npz").substr(0, 4), "PK\x03\x04");
  EXPECT_NE(read_file(dir / "packed/samples.npz")
                .find("'descr': '|u1', 'fortran_order': False, 'shape': (7,28,28,1,)"),
            std::string::npos);
  EXPECT_FALSE(std::filesystem::exists(dir / "packed/000003.png"));
}

// From pictures to a latent model that is trained, sampled, decoded and aligned with a reward of
// pictures.
TEST(program_latents, FromPicturesToAnAlignedLatentModel) {
  const test::TempDir dir;
  const std::string at = dir.path().string();
  const std::string tae = "tests/golden/diffusers/taesd";
  std::filesystem::create_directories(dir / "pictures/train/a");
  std::filesystem::create_directories(dir / "pictures/train/b");
  for (int i = 0; i < 8; ++i) {
    write_png(dir / cat("pictures/train/", i % 2 ? "a/" : "b/", i, ".png"),
              RandomStreams(1).uniform(Purpose::kProbe, 0, i, 1, {3, 32, 32})[0]);
  }
  const std::string encode = cat("encode --autoencoder ", tae, " --data ", at, "/pictures --out ",
                                 at, "/latents.safetensors");
  expect_message(run(encode), 0, "wrote 8 latents [4, 4, 4]");
  expect_message(run(encode), 0, "encoded already");
  write_file_atomic(dir / "pretrain.toml", R"(batch = 4
micro_batch = 2
train.steps = 3
[model]
args.input_size = 4
args.patch_size = 2
args.in_channels = 4
args.hidden_size = 16
args.depth = 1
args.num_heads = 2
args.num_classes = 2
)");
  Outcome outcome =
      run(cat("pretrain ", at, "/pretrain.toml --set data.format=latents --set data.path=", at,
              "/latents.safetensors --out ", at, "/base"));
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  outcome = run(cat("sample --model ", at, "/base/model.safetensors --n 2 --steps 2 --decoder ",
                    tae, " --out ", at, "/s"));
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_EQ(read_image(dir / "s/000000.png").sizes().vec(), (std::vector<std::int64_t>{3, 32, 32}));
  write_file_atomic(dir / "tune.toml",
                    cat("[model]\nfile = \"", at, "/base/model.safetensors\"\n[decoder]\nfile = \"",
                        (test::source_dir() / tae).string(), "\"\n[[reward]]\nname = \"ink\"\n"));
  outcome = run(cat("finetune ", at, "/tune.toml --out ", at, "/tuned", kShort));
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_TRUE(std::filesystem::exists(dir / "tuned/model.safetensors"));
  const at::Tensor whole = read_image(dir / "s/000000.png");
  ASSERT_EQ(run(cat("sample --model ", at, "/base/model.safetensors --n 2 --steps 2 --decoder ",
                    tae, " --decoder-tile 2 --out ", at, "/tiled"))
                .code,
            0);
  EXPECT_FALSE(at::equal(whole, read_image(dir / "tiled/000000.png"))) << "tiles see less";
  outcome =
      run(cat("eval --model ", at,
              "/base/model.safetensors --n 16 --steps 2 --sampler ode-euler --decoder ", tae,
              " --features tests/golden/clip/vision_gelu/model.safetensors --format folder --data ",
              at, "/pictures/train"));
  EXPECT_NE(outcome.out.find("frechet_unconditional"), std::string::npos) << outcome.err;
  expect_message(
      run(cat("sample --model assets/mnist-sit.safetensors --decoder ", tae, " --out ", at, "/no")),
      3, "the autoencoder decodes 4-channel latents");
}

TEST(program_sweep, GoesOnPastFailuresAndKeepsWhatIsDone) {
  const test::TempDir dir;
  const std::string ask =
      cat("sweep recipes/mnist-ink.toml --vary reward[0].scale=4,0,8 --set train.steps=1 --set "
          "check.base_samples=32 --set check.tuned_samples=16 --set check.ode_steps=2 --out ",
          dir.path().string(), "/s", tiny(), "--set train.steps=1 ");
  const Outcome first = run(ask);
  EXPECT_EQ(first.code, 1) << "one run failed\n" << first.err;
  EXPECT_NE(first.out.find("| scale-4 | 4 | done |"), std::string::npos) << first.out << first.err;
  EXPECT_NE(first.out.find("| scale-0 | 0 | failed: "), std::string::npos) << first.out;
  EXPECT_NE(first.out.find("| scale-8 | 8 | done |"), std::string::npos) << first.out;
  EXPECT_TRUE(std::filesystem::exists(dir / "s/sweep.html"));
  EXPECT_TRUE(std::filesystem::exists(dir / "s/scale-8/check.json"));
  const Outcome table =
      run(cat("eval --table --n 100 --seeds 1 --features assets/mnist-judge.safetensors "
              "--reference assets/mnist-heldout-features.safetensors --run ",
              dir.path().string(), "/s/scale-8"));
  EXPECT_EQ(table.code, 0) << table.err;
  EXPECT_NE(table.out.find("Frechet, extrapolated"), std::string::npos) << table.out;
  for (const char* name : {"comparison.json", "comparison.csv", "comparison.html"}) {
    EXPECT_TRUE(std::filesystem::exists(dir / "s/scale-8" / name)) << name;
  }
  const Outcome again = run(ask);
  EXPECT_NE(again.out.find("| scale-4 | 4 | there already |"), std::string::npos) << again.out;
  const Outcome plan =
      run(cat("sweep recipes/mnist-ink.toml --dry-run --vary reward[0].scale=4,8 --vary "
              "train.beta2=0.9,0.99 --vary 'policy.targets=[\"*\"]'",
              tiny()));
  EXPECT_EQ(std::count(plan.out.begin(), plan.out.end(), '\n'), 4) << plan.out << plan.err;
  const Outcome quick = run(cat(
      "sweep recipes/mnist-ink.toml --quick --vary reward[0].scale=4 --set model.file=",
      tiny_model(),
      " --set batch=2 --set micro_batch=1 --set sampler.steps=2 --set method.loss_steps=2 --set "
      "evaluation.base_samples=4 --set evaluation.samples=2 --set train.steps=2 --out ",
      dir.path().string(), "/q"));
  EXPECT_EQ(quick.code, 0) << quick.err;
  EXPECT_FALSE(std::filesystem::exists(dir / "q/scale-4/check.json"));
  EXPECT_TRUE(std::filesystem::exists(dir / "q/scale-4/checkpoints/step-000002/DONE"))
      << "an explicit number of steps wins";
  // Methods at equal cost: 1,000 evaluations buy each its own number of steps.
  const Outcome methods = run(cat(
      "sweep recipes/methods-mnist-ink.toml --vary method.name=log-variance,draft --budget "
      "1000 --no-check --set model.file=",
      tiny_model(),
      " --set batch=4 --set micro_batch=2 --set sampler.steps=3 --set evaluation.base_samples=4 "
      "--set evaluation.samples=2 --set evaluation.every=0 --set train.warmup=0 --out ",
      dir.path().string(), "/m"));
  EXPECT_EQ(methods.code, 0) << methods.err;
  const auto rows = nlohmann::json::parse(read_file(dir / "m/sweep.json"));
  EXPECT_EQ(rows[0]["steps"], "20");  // (3 + 3 + 2 x 3) x 4 = 48 a step
  EXPECT_EQ(rows[1]["steps"], "50");  // (3 + 2) x 4 = 20
  const Outcome unread = run(cat("sweep recipes/mnist-ink.toml --vary reward[0].scale=4,nan --out ",
                                 dir.path().string(), "/never", tiny()));
  expect_message(unread, 3, "scale-nan: ");
  EXPECT_FALSE(std::filesystem::exists(dir / "never"))
      << "values are read before the first run begins";
  expect_message(run("sweep recipes/mnist-ink.toml --dry-run --together --vary reward[0].scale=4,8 "
                     "--vary train.beta2=0.9"),
                 2, "has 2 values");
}

namespace {

// What a run has logged of base and evaluation before its first step.
std::map<std::string, double> first_evaluation(const std::filesystem::path& run) {
  std::map<std::string, double> out;
  for (const auto& line : read_json_lines(run / "metrics.jsonl")) {
    if (line["step"] != 0) continue;
    for (const auto& [key, value] : line.items()) {
      if (starts_with(key, "base_") || starts_with(key, "eval_")) out[key] = value.get<double>();
    }
  }
  return out;
}

}  // namespace

// Two real processes with half a batch each are one process with the whole batch: gradients,
// clipping thresholds and metrics are shared. Were gradients not summed, each process would train a
// model of its own on half the batch.
TEST(program_processes, TwoProcessesEqualOne) {
  const test::TempDir dir;
  const std::string at = dir.path().string();
  const std::string ask =
      cat("finetune recipes/mnist-ink.toml", tiny(),
          "--set batch=8 --set micro_batch=4 --set labels.kind=uniform --set "
          "reward[0].name=class-log-prob --set reward[0].judge=assets/mnist-judge.safetensors "
          "--set buffer_passes=1 --set method.times=shared --set method.clip_quantile=0.9 --set "
          "evaluation.base_samples=34 --set evaluation.samples=33 --set evaluation.every=4 ");
  Outcome outcome = run(cat(ask, "--out ", at, "/one"));
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  outcome = start(cat("--procs 2 ", ask, "--out ", at, "/two"));
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  outcome = run(cat(ask, "--set micro_batch=1 --out ", at, "/pieces"));  // eight accumulated pieces
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  outcome = run(cat(ask, "--set batch=4 --out ", at, "/half"));
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  const ParameterSet base = read_safetensors(tiny_model()).tensors;
  const auto change = [&](const char* run, const std::string& name) {
    return read_safetensors(dir / run / "model.safetensors").tensors.at(name) - base.at(name);
  };
  for (const char* name : {"blocks.0.attn.qkv.weight", "final_layer.linear.weight"}) {
    const at::Tensor one = change("one", name);
    EXPECT_LT(((change("two", name) - one).norm() / one.norm()).item<double>(), 0.02) << name;
    EXPECT_LT(((change("pieces", name) - one).norm() / one.norm()).item<double>(), 0.02) << name;
    EXPECT_GT(((change("half", name) - one).norm() / one.norm()).item<double>(), 0.1)
        << name << ": half a batch is something else";
  }
  // Evaluations are shared too, and are those of one process.
  const auto alone = first_evaluation(dir / "one");
  const auto shared = first_evaluation(dir / "two");
  EXPECT_TRUE(alone.count("eval_reward") && alone.count("eval_path_gap") &&
              alone.count("base_reward"));
  EXPECT_EQ(alone.size(), shared.size());
  for (const auto& [key, value] : alone) {
    EXPECT_NEAR(shared.at(key), value, 1e-6 * (1 + std::abs(value))) << key;
  }
  // A failure ends all, with its message; unknown variables are a clear error.
  outcome = start(cat("--procs 2 ", ask, "--out ", at, "/two"));
  expect_message(outcome, 3, "already holds a run");
  expect_message(start(cat(ask, "--out ", at, "/no"), "export RANK=5 WORLD_SIZE=2; "), 3,
                 "this process's rank = '5'");
  expect_message(run("--procs 2 verify"), 2, "verify runs in one process");
  outcome = start(
      cat("--procs 2 sample --model ", tiny_model(), " --n 5 --part 2 --steps 2 --out ", at, "/s"));
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_EQ(read_safetensors(dir / "s/samples.safetensors").tensors.at("samples").size(0), 5);
}

TEST(program_likelihood, SamplesOfTheModel) {
  const test::TempDir dir;
  const std::string at = dir.path().string();
  EXPECT_EQ(
      run(cat("sample --model ", tiny_model(), " --n 2 --steps 3 --labels 3,5 --out ", at, "/s"))
          .code,
      0);
  const std::string ask = cat("likelihood --model ", tiny_model(), " --input ", at,
                              "/s/samples.safetensors --sampler ode-euler --json --steps ");
  const Outcome outcome = run(ask + "3");
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_NE(outcome.out.find("\"bits_per_dim\":"), std::string::npos) << outcome.out;
  EXPECT_NE(outcome.out, run(ask + "3 --seed 1").out) << "other probes";
  EXPECT_NE(outcome.out, run(ask + "3 --unconditional").out);
  expect_message(run("likelihood --model assets/mnist-sit.safetensors --input x --sampler euler"),
                 2, "likelihood integrates an ODE");
  EXPECT_NE(run(ask + "1 --exact --n 1").out.find("\"divergence\":\"exact\""), std::string::npos);
  expect_message(run("eval --run runs/x --features pixels"), 2, "--features has no effect");
  expect_message(run("eval --run runs/x --table --judge y"), 2, "");
  expect_message(run("likelihood --model assets/mnist-sit.safetensors"), 2,
                 "needs --data FOLDER or --input FILE");
}

// Every flag that chooses weights or a sampler reaches what it names.
TEST(program_flags, WeightsAdaptersAndDiffusionsAreUsed) {
  const test::TempDir dir;
  const std::string at = dir.path().string();
  const std::string golden = "tests/golden/sit/";
  const auto tensors = [](const std::string& file) {
    return read_safetensors(test::golden(file)).tensors;
  };
  write_torch_file(dir / "trainer.pt", {{"model", tensors("sit_a_model.safetensors")},
                                        {"ema", tensors("sit_a_ema.safetensors")}});
  const std::string parity =
      cat("parity --reference ", golden,
          "sit_a_forward.safetensors --model-arg num_heads=4 --model ", at, "/trainer.pt");
  EXPECT_EQ(run(parity).code, 0);
  EXPECT_EQ(run(parity + " --weights model").code,
            1);  // the reference belongs to the averaged weights
  expect_message(run(parity + " --weights emma"), 4, "no state dict 'emma'");

  const auto samples = [&](const std::string& flags) {
    const Outcome outcome = run(cat("sample --model ", tiny_model(),
                                    " --n 1 --steps 4 --overwrite --out ", at, "/s ", flags));
    EXPECT_EQ(outcome.code, 0) << flags << outcome.err;
    return read_safetensors(dir / "s/samples.safetensors").tensors.at("samples");
  };
  const at::Tensor plain = samples("--sampler sde-euler");
  for (const char* flags :
       {"--sampler sde-heun", "--sampler sde-euler --diffusion linear",
        "--sampler sde-euler --diffusion-norm 0.5", "--sampler sde-euler --last-step tweedie",
        "--sampler sde-euler --last-step-size 0.2"}) {
    EXPECT_FALSE(at::equal(plain, samples(flags))) << flags;
  }

  ParameterSet adapter;  // rank 1 on one layer
  adapter.add("blocks.0.attn.qkv.lora_A.weight", at::ones({1, 96}));
  adapter.add("blocks.0.attn.qkv.lora_B.weight", at::ones({288, 1}));
  write_adapters(dir / "adapter", adapter, 1, 2);
  EXPECT_EQ(run(cat("convert assets/mnist-sit.safetensors ", at, "/merged.safetensors --lora ", at,
                    "/adapter --lora-strength 0.5"))
                .code,
            0);
  const std::string layer = "blocks.0.attn.qkv.weight";
  const at::Tensor before =
      read_safetensors(test::source_dir() / "assets/mnist-sit.safetensors").tensors.at(layer);
  const at::Tensor after = read_safetensors(dir / "merged.safetensors").tensors.at(layer);
  EXPECT_LT((after - before - 1).abs().max().item<double>(), 1e-6);  // 0.5 x alpha / rank x B A
}

TEST(program_errors, ConfigurationProblems) {
  expect_message(run("finetune recipes/mnist-ink.toml --set train.stepz=1 --out /tmp/never"), 3,
                 "did you mean 'train.steps'");
  expect_message(run("finetune recipes/mnist-ink.toml --set batch=x --out /tmp/never"), 3,
                 "must be an integer");
  expect_message(run("finetune recipes/mnist-ink.toml --set reward[0].scale=nan --out /tmp/never"),
                 3, "must be a finite number");
  expect_message(run("finetune /nonexistent.toml"), 4, "cannot open");
  expect_message(
      run("finetune /dev/null --set model.file=assets/mnist-sit.safetensors --out /tmp/never"), 3,
      "no reward");
  expect_message(
      run("finetune recipes/mnist-ink.toml --set model.file=/nonexistent --out /tmp/never"), 4,
      "cannot open /nonexistent");
  expect_message(run("finetune recipes/mnist-ink.toml --set policy.kind=control --set "
                     "policy.control.width=12 --out /tmp/never"),
                 3, "multiple of 8");
  expect_message(run("finetune recipes/mnist-ink.toml --set 'policy.trainable=[\"block.*\"]' --out "
                     "/tmp/never"),
                 3, "matches no tensor");
  expect_message(run("sample --model assets/mnist-sit.safetensors --guidance 3 --out /tmp/never"),
                 2, "guidance needs labels");
  expect_message(run("finetune recipes/mnist-ink.toml --set labels.kind=fixed --set "
                     "labels.label=10 --out /tmp/never"),
                 3, "out of range");
  expect_message(run("finetune recipes/mnist-ink.toml --set reward[0].scale=0 --out "
                     "/tmp/tiltflow-never-constant" +
                     tiny()),
                 3, "constant");
  std::filesystem::remove_all("/tmp/tiltflow-never-constant");
  EXPECT_FALSE(std::filesystem::exists("/tmp/never"));
}

TEST(program_errors, BadFiles) {
  const test::TempDir dir;
  const std::string good = read_file(test::source_dir() / "assets/mnist-sit.safetensors");
  write_file_atomic(dir / "cut.safetensors", good.substr(0, good.size() / 2));
  expect_message(run(cat("sample --model ", (dir / "cut.safetensors").string(), " --out ",
                         (dir / "s").string())),
                 4, "is cut");
  EXPECT_FALSE(std::filesystem::exists(dir / "s"));
  expect_message(run(cat("inspect ", (test::source_dir() / "README.md").string())), 4,
                 "is a text file");
  expect_message(run("sample --model assets/mnist-judge.safetensors --out /tmp/never"), 4,
                 "not a velocity model");
  expect_message(run("sample --model assets/mnist-sit.safetensors --label 11 --out /tmp/never"), 2,
                 "out of range");
  expect_message(run("parity --model tests/golden/sit/sit_a_ema.safetensors --reference "
                     "tests/golden/sit/sit_a_forward.safetensors --model-arg num_heads=2"),
                 1, "");
  EXPECT_EQ(run("parity --model tests/golden/sit/sit_a_ema.safetensors --reference "
                "tests/golden/sit/sit_a_forward.safetensors --model-arg num_heads=4")
                .code,
            0);
}

TEST(program_errors, UnwritableAndFullFolders) {
  const Outcome full =
      run("sample --model assets/mnist-sit.safetensors --n 1 --steps 1 --out /proc/tiltflow");
  EXPECT_EQ(full.code, 1) << full.err;
  // a file size limit stands for a full disk: writing fails half-way
  const test::TempDir dir;
  const Outcome limited =
      start(cat("sample --model assets/mnist-sit.safetensors --n 64 --steps 1 --out ",
                (dir / "s").string()),
            "ulimit -f 20; trap '' XFSZ; ");
  EXPECT_EQ(limited.code, 1) << limited.err;
  EXPECT_NE(limited.err.find("cannot write"), std::string::npos) << limited.err;
  EXPECT_FALSE(std::filesystem::exists(dir / "s/samples.safetensors"));
  for (const auto& entry : std::filesystem::directory_iterator(dir / "s")) {
    EXPECT_EQ(entry.path().string().find(".tmp"), std::string::npos);
  }
}

TEST(program_signals, StopSavesAndResumeIsByteIdentical) {
  const test::TempDir dir;
  // SIGTERM as soon as the first checkpoint (after one buffer of four steps) is there; SIGKILL
  // likewise in another run
  for (const auto& [signal, code, precision] :
       {std::tuple{"TERM", 75, "fp32"}, {"KILL", 137, "bf16"}}) {
    const std::string recipe = cat("finetune recipes/mnist-ink.toml --set buffer_passes=4 ", tiny(),
                                   "--set compute.precision=", precision, " --set train.steps=80 ");
    const std::string whole = (dir / cat("whole-", precision)).string();
    ASSERT_EQ(run(cat(recipe, "--out ", whole)).code, 0);
    const std::string out = (dir / signal).string();
    const Outcome stopped =
        shell(dir, cat("$TILTFLOW ", recipe, "--out ", out, " & pid=$!\n",
                       "while kill -0 $pid; do compgen -G '", out,
                       "/checkpoints/step-*[1-9]*/DONE' && break; sleep 0.01; done\n", "kill -",
                       signal, " $pid; wait $pid"));
    EXPECT_EQ(stopped.code, code) << stopped.err;
    ASSERT_EQ(run(cat(recipe, "--resume --out ", out)).code, 0);
    EXPECT_TRUE(test::same_files(dir / cat(signal, "/model.safetensors"),
                                 std::filesystem::path(whole) / "model.safetensors"))
        << signal;
  }
}

}  // namespace tiltflow
