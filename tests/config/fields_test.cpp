#include "tiltflow/config/fields.h"

#include "tests/support.h"
#include "tiltflow/base/file.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/train/finetuning.h"

namespace tiltflow {
namespace {
FinetuneConfig load(const std::string& text, const std::vector<Override>& set = {},
                    std::string* resolved = nullptr) {
  const test::TempDir dir;
  write_file_atomic(dir / "c.toml", text);
  return load_config<FinetuneConfig>(dir / "c.toml", set, resolved);
}
}  // namespace

TEST(config_fields, ReadsValuesAndOverrides) {
  const FinetuneConfig c =
      load("batch = 7\n[train]\nlearning_rate = 1\n[[reward]]\nname = \"ink\"\nscale = 2\n",
           {"train.steps=3", "reward[0].scale=5", "labels.kind=uniform"});
  EXPECT_EQ(c.batch, 7);
  EXPECT_EQ(c.train.optimizer.learning_rate, 1.0);
  EXPECT_EQ(c.train.steps, 3);
  EXPECT_EQ(c.reward.at(0).scale, 5);
  EXPECT_EQ(c.labels.kind, "uniform");
}

TEST(config_fields, UnknownKeysGetALineAndASuggestion) {
  test::expect_error(
      ErrorKind::kConfig,
      "c.toml:2: unknown key 'train.learning_rat' (did you mean 'train.learning_rate'?)",
      [] { load("[train]\nlearning_rat = 1\n"); });
}

TEST(config_fields, AllProblemsAtOnce) {
  try {
    load("batch = \"x\"\nseed = -1\n[sampler]\nname = \"eulr\"\n");
    FAIL();
  } catch (const Error& error) {
    const std::string text = error.what();
    EXPECT_NE(text.find("3 problems"), std::string::npos) << text;
    EXPECT_NE(text.find("batch must be an integer"), std::string::npos) << text;
    EXPECT_NE(text.find("did you mean 'euler'"), std::string::npos) << text;
  }
}

namespace {

struct Renamed {
  std::int64_t pieces = 1;
};
void bind(Fields& f, Renamed& r) {
  f.renamed("parts", "pieces");
  f.value("pieces", r.pieces, "a key with a former name", at_least_integer(1));
}

std::int64_t pieces(const std::string& text, const std::vector<Override>& changes = {}) {
  const test::TempDir dir;
  write_file_atomic(dir / "c.toml", text);
  return load_config<Renamed>(dir / "c.toml", changes).pieces;
}

}  // namespace

TEST(config_fields, FormerNamesAreTakenWithAWarning) {
  testing::internal::CaptureStderr();
  EXPECT_EQ(pieces("parts = 3\n"), 3);
  const std::string said = testing::internal::GetCapturedStderr();
  EXPECT_NE(said.find("c.toml:1: 'parts' is now called 'pieces'"), std::string::npos) << said;
  EXPECT_EQ(pieces("pieces = 3\n", {"parts=4"}), 4) << "an override wins, by either name";
  EXPECT_EQ(pieces("parts = 3\n", {"pieces=4"}), 4);
  EXPECT_EQ(pieces("parts = 3\n", command_line_overrides({}, {"pieces"})), 1);
  test::expect_error(ErrorKind::kConfig, "is given twice",
                     [] { pieces("parts = 3\npieces = 2\n"); });
  test::expect_error(ErrorKind::kConfig, "pieces must be at least 1",
                     [] { pieces("parts = 0\n"); });
}

TEST(config_fields, CountsHaveAnUpperEndAndSeedsHaveNone) {
  const char* const too_many = "must be at most 2147483647";
  for (const char* key :
       {"batch", "micro_batch", "train.steps", "evaluation.samples", "policy.rank", "sampler.steps",
        "compute.workers", "buffer_passes", "check.base_samples"}) {
    SCOPED_TRACE(key);
    test::expect_error(ErrorKind::kConfig, too_many,
                       [&] { load("", {cat(key, "=9223372036854775807")}); });
  }
  EXPECT_EQ(load("seed = 9223372036854775807\n").seed, 9223372036854775807);
  EXPECT_EQ(load("batch = 2147483647\n").batch, 2147483647);
}

TEST(config_fields, SyntaxErrorsNameTheLine) {
  test::expect_error(ErrorKind::kConfig, "c.toml:2", [] { load("batch = 1\nx = = 2\n"); });
  test::expect_error(ErrorKind::kBadFile, "cannot open",
                     [] { load_config<FinetuneConfig>("/nonexistent.toml", {}); });
  test::expect_error(ErrorKind::kUsage, "expected key=value", [] { load("", {"batch"}); });
  test::expect_error(ErrorKind::kConfig, "unknown key", [] { load("", {"bach=3"}); });
}

TEST(config_fields, ResolvedDocumentReproducesItself) {
  std::string once, twice;
  load(
      "batch = 7\n[model]\nfile = \"a.safetensors\"\nargs = { num_heads = 5 }\n[[reward]]\nname = "
      "\"ink\"\nscale = 2.5\n",
      {}, &once);
  const FinetuneConfig c = load(once, {}, &twice);
  EXPECT_EQ(once, twice);
  EXPECT_EQ(c.model.args.at("num_heads"), "5");
}

TEST(config_fields, PresetsGiveWayToExplicitKeys) {
  const FinetuneConfig c =
      load("[sampler]\nsteps = 40\n[method]\npreset = \"paper\"\nloss_steps = 8\nlate_steps = 2\n");
  EXPECT_EQ(c.method.adjoint.pairing, "later");
  EXPECT_EQ(c.method.adjoint.terminal, "noiseless");
  EXPECT_EQ(c.method.adjoint.loss_steps, 8);
  EXPECT_EQ(load("[sampler]\nsteps = 40\n[method]\npreset = \"paper\"\n").method.adjoint.loss_steps,
            20);
}

namespace {

std::string problems_of(const std::string& text, const std::vector<Override>& set = {}) {
  try {
    load(text, set);
  } catch (const Error& error) {
    return cat(error.what(), " | ", error.hint());
  }
  return "none";
}

}  // namespace

// Whose key it is, what was found in users' words, and the value as it was probably meant.
TEST(config_fields, WrongTypesSayWhatToWrite) {
  const std::vector<std::pair<Override, std::string>> cases{
      {"labels.list=3",
       "--set labels.list=3: labels.list must be a list of integers, found 3; write labels.list = "
       "[3]"},
      {"labels.list=[\"a\"]", "labels.list[0] must be an integer, found the text"},
      {"labels.kind=[\"list\"]", "labels.kind must be a text, found the list"},
      {"labels.kind=[\"list\"]", "write labels.kind = "},
      {"labels.kind=3", "write labels.kind = \"3\""},
      {"policy.trainable=blocks", "policy.trainable must be a list of texts, found the text"},
      {"batch=\"7\"", "batch must be an integer, found the text '7'; write batch = 7"},
      {"train.steps=1e3", "train.steps must be an integer, found 1000.0; write train.steps = 1000"},
      {"method.noise=1", "method.noise must be true or false, found 1; write method.noise = true"},
      {"train.learning_rate=[0.1]",
       "must be a number, found the list [0.1]; write train.learning_rate = 0.1"},
      {"guidance.begin=1.1", "must lie in [0, 1], found 1.1"},
      {"model=x", "model must be a section, written [model] with its keys below, found the text"},
      {"reward={name=\"ink\"}",
       "reward must be a list of sections, written [[reward]], found the section"},
      {"model.args=3", "model.args must be a section of names and values"},
  };
  for (const auto& [change, wanted] : cases) {
    const std::string found = problems_of("", {change});
    std::string plain = found;
    for (char& c : plain) {
      if (c == '"') c = '\'';
    }
    std::string expected = wanted;
    for (char& c : expected) {
      if (c == '"') c = '\'';
    }
    EXPECT_NE(plain.find(expected), std::string::npos) << change.text << "\n" << found;
  }
  EXPECT_NE(problems_of("\n[labels]\nlist = 3\n").find("c.toml:3: labels.list must be"),
            std::string::npos);
  EXPECT_NE(problems_of("", overrides_from("set of the recipe", {"bach=3"}))
                .find("set of the recipe bach=3: unknown key 'bach' (did you mean 'batch'?)"),
            std::string::npos);
  EXPECT_NE(problems_of("batch = 1\nbatch = 2\n").find("c.toml:2"), std::string::npos);
  EXPECT_NE(problems_of("", {"trian.steps=3"}).find("did you mean 'train'"), std::string::npos);
}

// 0.1 is stored and shown as 0.1, and reads back as the same double.
TEST(config_fields, NumbersAreShownInTheirShortestForm) {
  std::string resolved;
  const FinetuneConfig once =
      load("[train]\nlearning_rate = 0.1\n[[reward]]\nscale = 2.5e-07\n[check]\nallowance = 3\n",
           {"guidance.scale=0.3"}, &resolved);
  for (const char* line :
       {"learning_rate = 0.1\n", "scale = 2.5e-07\n", "allowance = 3.0\n", "scale = 0.3\n"}) {
    EXPECT_NE(resolved.find(line), std::string::npos) << line << resolved;
  }
  EXPECT_EQ(resolved.find("00000000"), std::string::npos) << resolved;
  EXPECT_EQ(load(resolved).train.optimizer.learning_rate, once.train.optimizer.learning_rate);
  EXPECT_EQ(load(resolved, {"guidance.scale=0.1"}).guidance.guidance.scale, 0.1);
}

TEST(config_fields, OverridesReachEveryKindOfKey) {
  const std::string two = "[[reward]]\nname = \"ink\"\n[[reward]]\nname = \"brightness\"\n";
  EXPECT_EQ(load(two, {"reward[1].scale=3"}).reward.at(1).scale, 3);
  EXPECT_EQ(load(two, {"reward.1.scale=3"}).reward.at(1).scale, 3);
  EXPECT_EQ(load(two, {"reward[2].name=step"}).reward.at(2).name, "step");
  EXPECT_EQ(load(two, {"reward[2]={name=\"step\", level=2}"}).reward.at(2).level, 2);
  EXPECT_EQ(load(two, {"reward[0]={name=\"step\"}"}).reward.at(0).name, "step");
  EXPECT_EQ(load("", {"model.args.\"a.b\"=4"}).model.args.at("a.b"), "4");
  EXPECT_EQ(load("", {"model.args.'x=y'=4"}).model.args.at("x=y"), "4");
  EXPECT_EQ(load("", {" batch = 5"}).batch, 5);
  EXPECT_EQ(load("", {"batch=5", "batch=6"}).batch, 6);
  test::expect_error(ErrorKind::kUsage, "'reward' is a list of 2 sections",
                     [&] { load(two, {"reward.scale=3"}); });
  test::expect_error(ErrorKind::kUsage, "the list has 2 items",
                     [&] { load(two, {"reward[5].scale=3"}); });
  for (const char* key :
       {"reward[x].scale=1", "reward[0=1", "a..b=1", "batch.=1", "model.args.\"a=1"}) {
    EXPECT_THROW(load(two, {key}), Error) << key;
  }
}

TEST(config_fields, UnsetReturnsToTheDefault) {
  const std::string text =
      "batch = 7\n[guidance]\nmode = \"full\"\nscale = 3\n[model]\nargs = { num_heads = 5, depth = "
      "2 }\n[[reward]]\nname = \"ink\"\n[[reward]]\nname = \"step\"\n";
  const auto without = [&](const std::string& key, const std::vector<std::string>& set = {}) {
    return load(text, command_line_overrides(set, {key}));
  };
  EXPECT_EQ(without("batch").batch, FinetuneConfig{}.batch);
  EXPECT_EQ(without("guidance").guidance.mode, "none");
  EXPECT_EQ(without("guidance.scale").guidance.guidance.scale, 1);
  EXPECT_EQ(without("guidance.scale").guidance.mode, "full");
  EXPECT_EQ(without("reward[0]").reward.at(0).name, "step");
  EXPECT_TRUE(without("reward").reward.empty());
  EXPECT_EQ(without("model.args.num_heads").model.args,
            (std::map<std::string, std::string>{{"depth", "2"}}));
  EXPECT_EQ(without("batch", {"batch=9"}).batch, 9);  // unset first, then set
  EXPECT_EQ(without("seed").seed, 0);                 // not given: nothing to do
  test::expect_error(ErrorKind::kConfig, "--unset bach: unknown key (did you mean 'batch'?)",
                     [&] { without("bach"); });
}

}  // namespace tiltflow
