// Which runs are checked, and what a check may change.
#include "tiltflow/eval/run_check.h"
#include "tests/report/hand_made_run.h"

namespace tiltflow {

TEST(eval_run_check, UnfinishedAndForeignRunsAreNamed) {
  const test::TempDir dir;
  test::expect_error(ErrorKind::kBadFile, "is not a run directory",
                     [&] { load_finished_run(dir.path()); });
  write_file_atomic(dir / "config.toml", test::kFinetune);
  test::expect_error(ErrorKind::kBadFile, "is not finished: it has no model.safetensors",
                     [&] { load_finished_run(dir.path()); });
}

TEST(eval_run_check, WorkersAndThreadsKeepTheRunsOwnCheck) {
  EXPECT_TRUE(keep_the_numbers({}));
  EXPECT_TRUE(keep_the_numbers({"compute.workers=1", "compute.threads=2"}));
  EXPECT_FALSE(keep_the_numbers({"compute.precision=bf16"}));
  EXPECT_FALSE(keep_the_numbers({"compute.workers=1", "check.base_samples=64"}));
}

}  // namespace tiltflow
