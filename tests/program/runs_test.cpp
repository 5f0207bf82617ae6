// Folders that belong to one run or one request, as a user meets them.
#include "tests/program/program.h"
#include "tests/same_bytes.h"
#include "tests/train/small_model.h"
#include "tiltflow/base/folder_claim.h"

namespace tiltflow {
namespace {

namespace fs = std::filesystem;
using test::expect_message;
using test::run;

// The tiny SiT at two states of training.
const fs::path kModel = test::golden("sit_a_ema.safetensors");
const fs::path kOther = test::golden("sit_a_model.safetensors");

TEST(program_sample, AFolderHoldsOneRequest) {
  const test::TempDir dir;
  const std::string model = (dir / "m.safetensors").string();
  const std::string labels = (dir / "l.txt").string();
  const std::string out = (dir / "o").string();
  fs::copy_file(kModel, model);
  write_file_atomic(labels, "0");
  const std::string ask =
      cat("sample --model-arg num_heads=4 --workers 1 --steps 1 --n 3 --labels @", labels,
          " --out ", out, " --model ");
  ASSERT_EQ(run(ask + model).code, 0);
  fs::copy_file(out + "/samples.safetensors", dir / "first.safetensors");
  expect_message(run(cat(ask, model, " --seed 1")), 3,
                 cat(out, " holds samples already: 3 of ", model, ", seed 0"));
  const std::string moved = (dir / "moved.safetensors").string();
  fs::rename(model, moved);
  expect_message(run(cat(ask, moved, " --resume")), 0, "3 samples were there already");
  fs::remove(moved);
  fs::copy_file(kOther, moved);
  expect_message(run(cat(ask, moved, " --resume")), 3,
                 cat("model: ", moved, " has another content"));
  write_file_atomic(labels, "1");
  expect_message(run(cat(ask, moved, " --resume")), 3,
                 cat("labels: ", labels, " has another content"));
  EXPECT_TRUE(test::same_files(out + "/samples.safetensors", dir / "first.safetensors"))
      << "a refused call changes nothing";
  write_file_atomic(out + "/mine.txt", "");
  ASSERT_EQ(run(cat(ask, moved, " --pack npz --no-png --overwrite")).code, 0);
  EXPECT_FALSE(fs::exists(out + "/samples.safetensors") || fs::exists(out + "/000000.png"))
      << "nothing of the other model is left";
  EXPECT_TRUE(fs::exists(out + "/mine.txt"));
  expect_message(run(cat(ask, moved, " --shard 0/2 --overwrite")), 2,
                 "one shard would remove what another draws");
}

TEST(program_sample, ForeignPicturesAreNotMixed) {
  const test::TempDir dir;
  fs::create_directories(dir / "photos");
  write_file_atomic(dir / "photos/000017.png", "a photo");
  for (const char* flag : {"", " --overwrite", " --resume"}) {
    expect_message(run(cat("sample --model ", kModel.string(),
                           " --model-arg num_heads=4 --steps 1 --n 1 --out ",
                           (dir / "photos").string(), flag)),
                   3, "holds 000017.png and no request.json");
  }
  EXPECT_EQ(read_file(dir / "photos/000017.png"), "a photo");
}

TEST(program_sample, OneProcessWritesAFolder) {
  const test::TempDir dir;
  const std::string ask = cat(
      "sample --model ", kModel.string(),
      " --model-arg num_heads=4 --workers 1 --steps 1 --n 3 --part 1 --out ", (dir / "o").string());
  {
    const FolderClaim other(dir / "o");
    expect_message(
        run(ask), 1,
        cat("another process writes to ", (dir / "o").string(), ": process ", ::getpid()));
    expect_message(run(ask + " --shard 0/2"), 1, "another process writes");
  }
  const FolderClaim shard(dir / "o", "shard-1-of-2");
  expect_message(run(ask), 1, "another process writes");
  EXPECT_EQ(run(ask + " --shard 0/2").code, 0) << "shards write beside each other";
}

// dir/c.toml: a run of two steps, in a second.
void write_recipe(const test::TempDir& dir, const fs::path& model) {
  write_file_atomic(dir / "c.toml",
                    cat("batch = 8\nitem = 8\n[model]\nfile = '", model.string(), R"('
args = { num_heads = 4 }
[[reward]]
name = "ink"
[sampler]
steps = 3
[evaluation]
every = 1
samples = 4
base_samples = 16
[compute]
workers = 1
[train]
steps = 2
checkpoint_every = 1
)"));
}

// A start that fails in its first step, the corrected one, a longer one on another number of
// workers.
TEST(program_runs, FailedStartsAndLongerRuns) {
  const test::TempDir dir;
  write_recipe(dir, kModel);
  const std::string out = (dir / "r").string();
  const std::string ask = cat("finetune ", (dir / "c.toml").string(), " --out ", out);
  EXPECT_NE(run(ask + " --set method.name=flow-grpo --set micro_batch=4").code, 0);
  ASSERT_EQ(run(ask).code, 0) << "a failed start does not claim the folder";
  expect_message(run(ask), 3, "already holds a run");
  expect_message(run(ask + " --resume --set train.learning_rate=0.5"), 3,
                 "train.learning_rate was ");
  expect_message(run(ask + " --resume --dry-run --set seed=9"), 3, "seed");
  const test::Outcome longer =
      run(ask + " --resume --set train.steps=3 --set compute.workers=2 --set micro_batch=4");
  expect_message(longer, 0, "resuming with train.steps = 3 (was 2)");
  expect_message(longer, 0, "resuming with compute.workers = 2 (was 1): a setting of the machine");
  expect_message(
      longer, 0,
      "the cosine schedule now spans 3 steps instead of 2: step 3 is done at a learning rate of");
  expect_message(run(ask + " --resume --set train.steps=1"), 3, "has done 3 steps already");
  const FolderClaim other(out);
  expect_message(run(ask + " --resume"), 1, cat("another process writes to ", out));
}

// A finished run counts only with the files that it was trained with.
TEST(program_runs, CachesNoticeOtherFiles) {
  const test::TempDir dir;
  const fs::path model = dir / "m.safetensors";
  fs::copy_file(kModel, model);
  write_recipe(dir, model);
  const std::string sweep = cat("sweep ", (dir / "c.toml").string(),
                                " --vary train.steps=1 --no-check --out ", (dir / "s").string());
  EXPECT_NE(run(sweep).out.find("| done |"), std::string::npos);
  EXPECT_NE(run(sweep).out.find("| there already |"), std::string::npos);
  fs::remove(model);
  fs::copy_file(kOther, model);
  const std::string changed = cat("model.file: ", model.string(), " has another content");
  expect_message(run(sweep), 1, changed);
  for (const char* form : {"eval --run ", "eval "}) {
    expect_message(run(form + (dir / "s/steps-1").string()), 3, changed);
  }
}

}  // namespace
}  // namespace tiltflow
