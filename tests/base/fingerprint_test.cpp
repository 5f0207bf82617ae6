#include <thread>

#include "tests/support.h"
#include "tiltflow/base/fingerprint.h"
#include "tiltflow/base/inputs.h"
#include "tiltflow/base/sha256.h"
#include "tiltflow/base/strings.h"

namespace tiltflow {
namespace {

namespace fs = std::filesystem;

using test::expect_error;

}  // namespace

TEST(base_fingerprint, OfAFileIsItsSha256) {
  const test::TempDir dir;
  write_file_atomic(dir / "a", "abc");
  const Fingerprint a = fingerprint_of(dir / "a", PathKind::kAll);
  EXPECT_EQ(a.sha256, sha256("abc"));
  EXPECT_EQ(a.bytes, 3u);
  fs::rename(dir / "a", dir / "b");
  EXPECT_EQ(difference(a, fingerprint_of(dir / "b", PathKind::kAll)), "");
  EXPECT_EQ(difference(a, fingerprint_of(dir / "a", PathKind::kAll)),
            cat((dir / "a").string(), " is gone"));
}

// The same name, size and date of modification: only the content tells.
TEST(base_fingerprint, DatesAndSizesProveNothing) {
  const test::TempDir dir;
  write_file_atomic(dir / "a", "abc");
  const auto date = fs::last_write_time(dir / "a") - std::chrono::hours(1);
  fs::last_write_time(dir / "a", date);
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  const Fingerprint before = fingerprint_of(dir / "a", PathKind::kAll);
  write_file_atomic(dir / "b", "xyz");
  fs::copy_file(dir / "b", dir / "a",
                fs::copy_options::overwrite_existing);  // in place: the inode stays
  fs::last_write_time(dir / "a", date);
  EXPECT_NE(difference(before, fingerprint_of(dir / "a", PathKind::kAll)), "");
}

TEST(base_fingerprint, FoldersAndCompanions) {
  const test::TempDir dir;
  fs::create_directories(dir / "data/zero");
  write_file_atomic(dir / "data/zero/1.png", "one");
  write_file_atomic(dir / "data/zero/2.png", "two");
  const Fingerprint before = fingerprint_of(dir / "data", PathKind::kAll);
  EXPECT_EQ(before.files.size(), 2u);
  write_file_atomic(dir / "data/.DS_Store", "");
  fs::create_directory_symlink(dir / "data", dir / "data/zero/again");  // a circle ends
  EXPECT_EQ(difference(before, fingerprint_of(dir / "data", PathKind::kAll)), "");
  fs::rename(dir / "data", dir / "moved");
  EXPECT_EQ(difference(before, fingerprint_of(dir / "moved", PathKind::kAll)), "");
  fs::rename(dir / "moved/zero/2.png", dir / "moved/zero/3.png");
  const std::string renamed = difference(before, fingerprint_of(dir / "moved", PathKind::kAll));
  EXPECT_NE(renamed.find("zero/3.png is new"), std::string::npos) << renamed;
  EXPECT_NE(renamed.find("zero/2.png is gone"), std::string::npos) << renamed;

  // Of a divided data set, runs beside its parts are no data.
  fs::create_directories(dir / "divided/train/a");
  write_file_atomic(dir / "divided/train/a/1.png", "one");
  write_file_atomic(dir / "divided/pairs.jsonl", "{}");
  const Fingerprint divided = fingerprint_of(dir / "divided", PathKind::kAll);
  EXPECT_EQ(divided.files.size(), 2u);
  fs::create_directories(dir / "divided/runs");
  write_file_atomic(dir / "divided/runs/model.safetensors", "a result");
  EXPECT_EQ(difference(divided, fingerprint_of(dir / "divided", PathKind::kAll)), "");
  write_file_atomic(dir / "divided/train/a/1.png", "two");
  EXPECT_NE(difference(divided, fingerprint_of(dir / "divided", PathKind::kAll)), "");

  write_file_atomic(dir / "m.safetensors.index.json",
                    R"({"weight_map": {"a": "m-1.safetensors", "b": "m-2.safetensors"}})");
  for (const char* shard : {"m-1.safetensors", "m-2.safetensors"}) {
    write_file_atomic(dir / shard, shard);
  }
  const Fingerprint sharded = fingerprint_of(dir / "m.safetensors.index.json", PathKind::kWeights);
  write_file_atomic(dir / "m-2.safetensors", "other weights");
  const std::string shard =
      difference(sharded, fingerprint_of(dir / "m.safetensors.index.json", PathKind::kWeights));
  EXPECT_NE(shard.find("m-2.safetensors has another content"), std::string::npos) << shard;
}

TEST(base_fingerprint, InputsAreReadBack) {
  const test::TempDir dir;
  write_file_atomic(dir / "a", "abc");
  const Inputs before = fingerprints_of({{"model.file", dir / "a", PathKind::kAll}});
  EXPECT_TRUE(changed_inputs(parse_inputs(inputs_text(before), "here"), before).empty());
  write_file_atomic(dir / "a", "abcd");
  const Inputs now = fingerprints_of({{"model.file", dir / "a", PathKind::kAll}});
  expect_error(
      ErrorKind::kConfig,
      cat("model.file: ", (dir / "a").string(), " has another content (sha256 ba7816bf8f01 before"),
      [&] { require_same_inputs(before, now, "the run", ""); });
  expect_error(ErrorKind::kBadFile, "no list of inputs", [&] { parse_inputs("[1]", "here"); });
  EXPECT_TRUE(read_inputs(dir / "none").empty());
}

}  // namespace tiltflow
