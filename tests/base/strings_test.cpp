#include "tiltflow/base/strings.h"
#include "tests/support.h"

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

}  // namespace tiltflow
