#include "tests/same_bytes.h"
#include "tests/support.h"
#include "tests/train/small_onestep.h"
#include "tiltflow/base/file.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/io/image.h"
#include "tiltflow/train/onestep.h"

namespace tiltflow {
namespace {

using test::kOneStepStreams;
using test::quick_onestep;
using test::small_generator;

struct EmScene {
  test::TempDir dir;
  OneStepConfig c = quick_onestep();
  EmScene() {
    const auto g = small_generator();
    save_generator(dir / "g.safetensors", *g, g->parameters());
    std::filesystem::create_directories(dir / "data/train/a");
    const at::Tensor pictures = kOneStepStreams.uniform(Purpose::kData, 0, 0, 24, {1, 4, 4});
    for (std::int64_t i = 0; i < 24; ++i) {
      write_png(dir / "data/train/a" / cat(i, ".png"), pictures[i]);
    }
    c.generator.file = (dir / "g.safetensors").string();
    c.targets.format = "folder";
    c.targets.path = (dir / "data").string();
    c.assign.steps = 8;
    c.assign.screen = 1;
    c.assign.restarts = 1;
    c.assign.learning_rate = 0.05;
    c.train.steps = 20;
    c.sft.batch = 12;
    c.sft.micro_batch = 6;
    c.em.rounds = 3;
  }
};

}  // namespace

TEST(train_em, TheObjectiveNeverRises) {
  EmScene s;
  const std::vector<EmRound> rounds = run_em(s.c, s.dir / "em", {"a = 1\n"});
  double before = INFINITY;
  for (const EmRound& r : rounds) {
    EXPECT_LE(r.after_assign, before);
    EXPECT_LE(r.after_train, r.after_assign);
    before = r.after_train;
  }
  EXPECT_LT(rounds.back().after_train, 0.9 * rounds.front().after_assign);
  // Broken on purpose: noises drawn anew, as the reference does it.
  EmScene cold;
  cold.c.em.warm_start = false;
  const std::vector<EmRound> other = run_em(cold.c, cold.dir / "em", {"a = 1\n"});
  EXPECT_TRUE(other[1].after_assign > other[0].after_train ||
              other[2].after_assign > other[1].after_train);
}

TEST(train_em, AStepThatDoesNotHelpIsRejectedAndFinishedWorkIsKept) {
  EmScene s;
  s.c.em.rounds = 1;
  s.c.sft.validation = 0;
  s.c.train.optimizer.learning_rate = 50;  // the last weights, far away
  const std::vector<EmRound> rounds = run_em(s.c, s.dir / "em", {"a = 1\n"});
  EXPECT_EQ(rounds[0].step, 0);
  EXPECT_EQ(rounds[0].after_train, rounds[0].after_assign);
  const ParameterSet kept = read_safetensors(s.dir / "em/model.safetensors").tensors;
  const ParameterSet start = read_safetensors(s.dir / "g.safetensors").tensors;
  for (const auto& [name, tensor] : start) EXPECT_TRUE(at::equal(tensor, kept.at(name)));
  const std::string table = read_file(s.dir / "em/em.json");
  run_em(s.c, s.dir / "em", {"a = 1\n"});
  EXPECT_TRUE(test::same_bytes(read_file(s.dir / "em/em.json"), table));
  test::expect_error(ErrorKind::kConfig, "another configuration",
                     [&] { run_em(s.c, s.dir / "em", {"a = 2\n"}); });
}

}  // namespace tiltflow
