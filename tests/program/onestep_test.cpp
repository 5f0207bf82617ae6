// One-step generators through the program: every verb, interruptions, bad targets.
#include <csignal>
#include <nlohmann/json.hpp>

#include "program.h"
#include "tests/same_bytes.h"
#include "tiltflow/io/image.h"
#include "tiltflow/io/json_lines.h"
#include "tiltflow/models/generator/generator.h"
#include "tiltflow/noise/assign_run.h"

namespace tiltflow {
namespace {

using test::expect_message, test::Outcome, test::run;

// Twelve targets a split, made by the generator of the fixture itself, as pictures on disk; a
// configuration for all verbs.
struct Scene {
  test::TempDir dir;
  std::string at = dir.path().string();
  Scene() {
    const auto g = load_generator(test::golden_onestep("mnist_generator.safetensors"));
    const at::Tensor labels = at::remainder(at::arange(12, at::kLong), 3);
    std::string pairs;
    for (const std::string& split : {std::string("train"), std::string("test")}) {
      const at::Tensor pictures =
          (g->generate(
               RandomStreams(split.size()).normal(Purpose::kPrior, 0, 0, 0, 12, {noise_size(*g)}),
               labels) +
           1) /
          2;
      for (std::int64_t i = 0; i < 12; ++i) {
        const std::string file = cat(split, "/", labels[i].item<std::int64_t>(), "/", i, ".png");
        std::filesystem::create_directories((dir / "data" / file).parent_path());
        write_png(dir / "data" / file, pictures[i]);
        if (split == "train") {
          pairs +=
              cat("{\"image\": \"", file, "\", \"label\": ", labels[i].item<std::int64_t>(), "}\n");
        }
      }
    }
    write_file_atomic(dir / "data/pairs.jsonl", pairs);
    write_file_atomic(
        dir / "c.toml",
        cat("seed = 1\n[generator]\nfile = \"",
            test::golden_onestep("mnist_generator.safetensors").string(),
            "\"\n[targets]\nformat = \"folder\"\npath = \"", at, "/data",
            "\"\n[assign]\nsteps = 12\nscreen = 2\nrestarts = 1\nchunk = 2\ntile = 4\n[sft]\nbatch "
            "= 4\nitem = 2\nevaluate_every = 2\n[train]\nsteps = 12\nlearning_rate = "
            "1e-3\ncheckpoint_every = 2\n"
            "[em]\nrounds = 2\n[align]\nsteps = 3\nbatch = 4\nfresh = 8\n[[reward]]\nname = "
            "\"ink\"\n[[held_out]]\nname = \"brightness\"\n[compute]\nworkers = 1\n"));
  }
  Outcome verb(const std::string& name, const std::string& out,
               const std::string& more = "") const {
    return run(cat(name, " ", at, "/c.toml --out ", at, "/", out, " ", more));
  }
  // Killed again and again, after so much processor time, until it comes through.
  int until_done(const std::string& name, const std::string& config, const std::string& out,
                 const std::string& more, double seconds) const {
    int kills = 0;
    for (; kills < 60; ++kills, seconds *= 1.2) {
      const Outcome outcome = run(
          cat(name, " ", at, "/", config, " --resume --out ", at, "/", out, " ", more), seconds);
      if (outcome.code == 0) break;
      EXPECT_EQ(outcome.code, 128 + SIGPROF) << outcome.err;
    }
    return kills;
  }
  void expect_same(const std::string& a, const std::string& b,
                   const std::vector<std::string>& files) const {
    for (const std::string& file : files) {
      EXPECT_TRUE(test::same_files(dir / a / file, dir / b / file));
    }
  }
};

}  // namespace

TEST(program_onestep, KilledRunsContinueToTheSameFiles) {
  const Scene s;
  const std::string longer = "--set assign.steps=150";
  ASSERT_EQ(s.verb("assign", "a", longer).code, 0);
  EXPECT_GT(s.until_done("assign", "c.toml", "b", longer, 0.04), 0);
  s.expect_same("a", "b",
                {"assigned.safetensors", "manifest.jsonl", "failures.jsonl", "summary.json",
                 "noise.json", "pairs.png", "store/rows.bin", "store/log.jsonl"});
  const std::string tuning = cat("--set sft.assigned=", s.at, "/a ");
  ASSERT_EQ(s.verb("sft", "s1", tuning + "--set train.steps=60").code, 0);
  EXPECT_GT(s.until_done("sft", "c.toml", "s2", tuning + "--set train.steps=60", 0.04), 0);
  s.expect_same("s1", "s2", {"model.safetensors"});
  ASSERT_EQ(s.verb("em", "e1").code, 0);
  EXPECT_GT(s.until_done("em", "c.toml", "e2", "", 0.04), 0);
  s.expect_same("e1", "e2",
                {"model.safetensors", "em.json", "round-02/assign/assigned.safetensors",
                 "round-02/model.safetensors"});
  EXPECT_NE(read_file(s.dir / "e1/report.html").find("data:image/png;base64"), std::string::npos);
  expect_message(s.verb("assign", "a", longer), 3, "already holds");
  expect_message(s.verb("assign", "a", "--resume --set assign.steps=13"), 3,
                 "another configuration");
  expect_message(s.verb("em", "e1"), 3, "already holds");
}

TEST(program_onestep, ShardsAndBadTargets) {
  const Scene s;
  ASSERT_EQ(s.verb("assign", "whole").code, 0);
  EXPECT_EQ(s.verb("sft", "t", cat("--dry-run --set sft.assigned=", s.at, "/whole")).code, 0);
  EXPECT_EQ(s.verb("assign", "parts", "--shard 1 --shards 2").code, 0);
  EXPECT_EQ(s.verb("assign", "parts", "--shard 0 --shards 2").code, 0);
  s.expect_same("whole", "parts", {"assigned.safetensors", "manifest.jsonl"});
  expect_message(s.verb("assign", "x", "--shard 2 --shards 2"), 2, "count from 0");
  // A list with a missing, a truncated and a wrong picture, and a line that is no JSON.
  const std::string good = read_file(s.dir / "data/pairs.jsonl");
  write_file_atomic(s.dir / "data/pairs.jsonl",
                    good +
                        "{\"image\": \"gone.png\", \"label\": 0}\n{\"image\": \"cut.png\", "
                        "\"label\": 0}\n{\"image\": \"wide.png\", \"label\": "
                        "0}\n{broken\n{\"image\": \"train/0/0.png\", \"label\": 77}\n");
  write_file_atomic(s.dir / "data/cut.png", read_file(s.dir / "data/train/0/0.png").substr(0, 90));
  write_png(s.dir / "data/wide.png", at::zeros({1, 28, 40}));
  const std::string list = "--set targets.format=pairs";
  expect_message(s.verb("assign", "list", list), 4, "5 targets failed");
  const auto failures = read_json_lines(s.dir / "list/failures.jsonl");
  ASSERT_EQ(failures.size(), 5U);
  for (const auto& line : failures) EXPECT_EQ(line["kind"], "bad-file");
  EXPECT_EQ(read_assigned(s.dir / "list").size(), 12);
  for (const char* file : {"gone.png", "cut.png", "wide.png"}) {
    std::filesystem::copy_file(s.dir / "data/train/0/0.png", s.dir / "data" / file,
                               std::filesystem::copy_options::overwrite_existing);
  }
  expect_message(s.verb("assign", "list", list + " --retry-failed"), 4, "2 targets failed");
  EXPECT_EQ(read_assigned(s.dir / "list").size(), 15);
  expect_message(s.verb("assign", "none", "--set targets.path=/nonexistent"), 4, "/nonexistent");
  expect_message(s.verb("sft", "none"), 3, "sft.assigned is missing");
  expect_message(s.verb("sft", "none", "--set sft.assigned=" + s.at), 4, "assigned.safetensors");
}

namespace {

void expect_assigned(const Scene& s) {
  Outcome outcome = s.verb("assign", "a",
                           "--json --set assign.init=transport --set assign.screen=1 --set "
                           "assign.map=cayley --set assign.learning_rate=0.02");
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  const auto summary = nlohmann::json::parse(outcome.out);
  EXPECT_LT(summary["loss"].get<double>(), summary["start_loss"].get<double>());
  // From these noises on, with another map and another generator if need be: no target gets worse.
  ASSERT_EQ(s.verb("assign", "warm", cat("--warm ", s.at, "/a")).code, 0);
  EXPECT_LE(
      (read_assigned(s.dir / "warm").loss - read_assigned(s.dir / "a").loss).max().item<double>(),
      1e-6);
}

// On the noise of `expect_assigned`, as what follows.
void expect_tuned(const Scene& s) {
  for (const char* change :
       {"--set sft.mode=direct",
        "--set sft.policy=lora --set sft.batch_norm=train --set sft.anchor=0.5"}) {
    static int number = 0;
    const Outcome outcome =
        s.verb("sft", cat("sft-", ++number), cat("--set sft.assigned=", s.at, "/a ", change));
    EXPECT_EQ(outcome.code, 0) << change << outcome.err;
  }
  ASSERT_EQ(
      s.verb("sft", "tuned", cat("--set sft.validation=0 --set sft.assigned=", s.at, "/a")).code,
      0);
  EXPECT_EQ(nlohmann::json::parse(
                run(cat("inspect ", s.at, "/tuned/model.safetensors --json")).out)["looks_like"],
            "gan");
}

void expect_compared(const Scene& s) {
  const std::string compare =
      cat("compare-generators ", s.at, "/c.toml --n 100 --held-out 4 --pairs ", s.at,
          "/a --generator base=", test::golden_onestep("mnist_generator.safetensors").string(),
          " --generator tuned=", s.at, "/tuned/model.safetensors,", s.at,
          "/a --judge assets/mnist-judge.safetensors --out ", s.at, "/cmp");
  Outcome outcome = run(compare + " --json");
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  const auto table = nlohmann::json::parse(outcome.out);
  ASSERT_EQ(table["rows"].size(), 3U);
  EXPECT_EQ(table["rows"][1]["distance to base"]["value"], 0);
  EXPECT_LT(table["rows"][2]["matched error"]["value"].get<double>(),
            table["rows"][1]["matched error"]["value"].get<double>());
  EXPECT_NE(read_file(s.dir / "cmp/comparison.html").find("held-out error"), std::string::npos);
  expect_message(run(cat("compare-generators ", s.at, "/c.toml --generator nonsense")), 2,
                 "NAME=FILE");
}

void expect_aligned(const Scene& s) {
  Outcome outcome =
      s.verb("align-noise", "al",
             "--json --set align.labels=[1,2] --set align.optimizer=adamw --set align.map=givens");
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  const auto aligned = nlohmann::json::parse(outcome.out);
  ASSERT_EQ(aligned.size(), 2U);
  EXPECT_EQ(aligned[1]["label"], 2);
  EXPECT_EQ(aligned[0]["held_out"]["history"].size(), 4U);
  for (const char* file :
       {"al/label-2.safetensors", "al/label-2-before-after.png", "al/report.html"}) {
    EXPECT_TRUE(std::filesystem::exists(s.dir / file)) << file;
  }
  expect_message(s.verb("align-noise", "al"), 3, "already holds");
}

void expect_noise_report(const Scene& s) {
  Outcome outcome =
      run(cat("noise-report ", s.at, "/a/assigned.safetensors --json --out ", s.at, "/noise"));
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_EQ(nlohmann::json::parse(outcome.out)["statistics"]["num_samples"], 12);
  EXPECT_TRUE(std::filesystem::exists(s.dir / "noise/noise.html"));
  outcome = run("noise-report --map householder --patch 4 --n 4000 --json");
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_EQ(nlohmann::json::parse(outcome.out)["verdict"], "consistent with N(0, I)");
  expect_message(run(cat("noise-report ", s.at, "/a/assigned.safetensors --tensor nois")), 4,
                 "did you mean 'noise'");
}

}  // namespace

TEST(program_onestep, EveryVerbAndWhatItLeaves) {
  const Scene s;
  for (const char* verb : {"assign", "em", "align-noise"}) {
    EXPECT_EQ(s.verb(verb, "dry", "--dry-run").code, 0) << verb;
  }
  EXPECT_FALSE(std::filesystem::exists(s.dir / "dry"));
  expect_assigned(s);
  expect_tuned(s);
  expect_compared(s);
  expect_message(s.verb("align-noise", "no", "--set align.labels=[-2]"), 3, "is no class");
  expect_message(s.verb("em", "no", "--set sft.batch=12"), 3, "exceeds the 10 targets");
  expect_message(s.verb("assign", "no", "--set assign.feature=1"), 3, "feature network");
  EXPECT_FALSE(std::filesystem::exists(s.dir / "no"));
  expect_aligned(s);
  expect_noise_report(s);
  const Outcome outcome =
      run(cat("bench assign --json --targets 8 --reference-targets 1 --config ", s.at, "/c.toml"));
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_GT(nlohmann::json::parse(outcome.out)["times_as_fast"].get<double>(), 1);
  expect_message(run(cat("bench am --config ", s.at, "/c.toml")), 2, "belongs to");
}

TEST(program_onestep, AGanIsTrainedStoppedAndContinued) {
  const Scene s;
  write_file_atomic(
      s.dir / "gan.toml",
      cat("kind = \"gan\"\nbatch = 8\nitem = 4\n[data]\nformat = \"folder\"\npath = \"", s.at,
          "/data\"\n[model]\nargs = { size = \"mnist\", base_channels = 4, d_base_channels = 4, "
          "feat_dim = 8, num_classes = 3, spectral_norm = true }\n"
          "[compute]\nworkers = 1\nprecision = \"bf16\"\n[train]\nsteps = 40\nbeta1 = "
          "0.5\naverage_decay = 0.9\ncheckpoint_every = 2\n"));
  const std::string command = cat("pretrain ", s.at, "/gan.toml --out ", s.at);
  ASSERT_EQ(run(command + "/g1").code, 0);
  EXPECT_GT(s.until_done("pretrain", "gan.toml", "g2", "", 0.04), 0);
  s.expect_same("g1", "g2", {"model.safetensors", "discriminator.safetensors"});
  EXPECT_TRUE(std::filesystem::exists(s.dir / "g1/samples/samples-step-000040.png"));
  EXPECT_EQ(load_generator(s.dir / "g1/model.safetensors")->classes(), 3);
  expect_message(run(command + "/g3 --set model.args.image_size=30"), 3, "no multiple");
  expect_message(run(command + "/g3 --set model.args.image_size=32"), 3, "the generator makes");
  expect_message(run(command + "/g3 --set model.args.num_classes=2"), 3, "labels up to 2");
}

TEST(program_onestep, RecipesAreRead) {
  for (const char* recipe :
       {"onestep-mnist", "onestep-cifar10", "pretrain-cifar10-gan", "pretrain-cifar10-judge"}) {
    EXPECT_EQ(run(cat("config show recipes/", recipe, ".toml")).code, 0) << recipe;
  }
  expect_message(run("config show recipes/onestep-mnist.toml --set assign.stepz=4"), 3,
                 "did you mean 'assign.steps'");
}

}  // namespace tiltflow
