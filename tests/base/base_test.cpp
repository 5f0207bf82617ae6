#include "tests/support.h"
#include "tiltflow/base/file.h"
#include "tiltflow/base/hash.h"
#include "tiltflow/base/strings.h"

namespace tiltflow {

TEST(base_strings, SuggestsOnlyCloseWords) {
  EXPECT_EQ(closest_match("learning_rat", {"learning_rate", "steps"}), "learning_rate");
  EXPECT_EQ(closest_match("zzz", {"learning_rate", "steps"}), "");
}

TEST(base_strings, Patterns) {
  EXPECT_TRUE(matches_pattern("blocks.3.attn.qkv", "*.attn.qkv"));
  EXPECT_TRUE(matches_pattern("blocks.3.attn.qkv", "blocks.?.*qkv"));
  EXPECT_FALSE(matches_pattern("blocks.3.attn.proj", "*.attn.qkv"));
  EXPECT_TRUE(matches_pattern("", "*"));
  EXPECT_FALSE(matches_pattern("", "?"));
}

TEST(base_strings, Formats) {
  EXPECT_EQ(format_duration(3725), "1h02m");
  EXPECT_EQ(format_duration(65), "1m05s");
  EXPECT_EQ(format_bytes(1500000), "1.5 MB");
  EXPECT_EQ(html_escape("<a & 'b'>"), "&lt;a &amp; 'b'&gt;");
}

TEST(base_hash, KnownValues) {
  EXPECT_EQ(crc32c("123456789"), 0xe3069283u);  // the check value of CRC-32C
  EXPECT_EQ(base64("Ma"), "TWE=");
  EXPECT_EQ(base64("Man"), "TWFu");
  EXPECT_EQ(base64("M"), "TQ==");
}

TEST(base_file, AtomicWriteKeepsTheOldFileOnFailure) {
  const test::TempDir dir;
  write_file_atomic(dir / "a", "old");
  EXPECT_EQ(read_file(dir / "a"), "old");
  test::expect_error(ErrorKind::kFailure, "cannot",
                     [&] { write_file_atomic(dir / "missing/a", "new"); });
  test::expect_error(ErrorKind::kFailure, "cannot",
                     [&] { write_file_atomic(dir.path(), "a folder is in the way"); });
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(dir.path()), {}), 1)
      << "a temporary file was left behind";
}

TEST(base_file, BrokenGzipIsAnError) {
  const test::TempDir dir;
  write_file_atomic(dir / "a.gz", std::string("\x1f\x8b\x08\x00garbage", 11));
  test::expect_error(ErrorKind::kBadFile, "gzip", [&] { read_file_gz(dir / "a.gz"); });
  test::expect_error(ErrorKind::kBadFile, "cannot open", [&] { read_file(dir / "none"); });
}

}  // namespace tiltflow
