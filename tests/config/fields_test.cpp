#include "tiltflow/config/fields.h"

#include "tests/support.h"
#include "tiltflow/base/file.h"
#include "tiltflow/train/finetuning.h"

namespace tiltflow {
namespace {
FinetuneConfig load(const std::string& text, const std::vector<std::string>& set = {}, std::string* resolved = nullptr) {
  const test::TempDir dir;
  write_file_atomic(dir / "c.toml", text);
  return load_config<FinetuneConfig>(dir / "c.toml", set, resolved);
}
}  // namespace

TEST(config_fields, ReadsValuesAndOverrides) {
  const FinetuneConfig c = load("batch = 7\n[train]\nlearning_rate = 1\n[[reward]]\nname = \"ink\"\nscale = 2\n", {"train.steps=3", "reward[0].scale=5", "labels.kind=uniform"});
  EXPECT_EQ(c.batch, 7);
  EXPECT_EQ(c.train.optimizer.learning_rate, 1.0);
  EXPECT_EQ(c.train.steps, 3);
  EXPECT_EQ(c.reward.at(0).scale, 5);
  EXPECT_EQ(c.labels.kind, "uniform");
}

TEST(config_fields, UnknownKeysGetALineAndASuggestion) {
  test::expect_error(ErrorKind::kConfig, "c.toml:2: unknown key 'train.learning_rat' (did you mean 'train.learning_rate'?)", [] { load("[train]\nlearning_rat = 1\n"); });
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

TEST(config_fields, SyntaxErrorsNameTheLine) {
  test::expect_error(ErrorKind::kConfig, "c.toml:2", [] { load("batch = 1\nx = = 2\n"); });
  test::expect_error(ErrorKind::kBadFile, "cannot open", [] { load_config<FinetuneConfig>("/nonexistent.toml", {}); });
  test::expect_error(ErrorKind::kUsage, "expected key=value", [] { load("", {"batch"}); });
  test::expect_error(ErrorKind::kConfig, "unknown key", [] { load("", {"bach=3"}); });
}

TEST(config_fields, ResolvedDocumentReproducesItself) {
  std::string once, twice;
  load("batch = 7\n[model]\nfile = \"a.safetensors\"\nargs = { num_heads = 5 }\n[[reward]]\nname = \"ink\"\nscale = 2.5\n", {}, &once);
  const FinetuneConfig c = load(once, {}, &twice);
  EXPECT_EQ(once, twice);
  EXPECT_EQ(c.model.args.at("num_heads"), "5");
}

TEST(config_fields, PresetsGiveWayToExplicitKeys) {
  const FinetuneConfig c = load("[sampler]\nsteps = 40\n[method]\npreset = \"paper\"\nloss_steps = 8\nlate_steps = 2\n");
  EXPECT_EQ(c.method.adjoint.pairing, "later");
  EXPECT_EQ(c.method.adjoint.terminal, "noiseless");
  EXPECT_EQ(c.method.adjoint.loss_steps, 8);
  EXPECT_EQ(load("[sampler]\nsteps = 40\n[method]\npreset = \"paper\"\n").method.adjoint.loss_steps, 20);
}

}  // namespace tiltflow
