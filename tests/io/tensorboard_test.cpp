#include <cstring>
#include <set>

#include "tests/support.h"
#include "tiltflow/base/file.h"
#include "tiltflow/base/hash.h"
#include "tiltflow/io/tensorboard.h"

namespace tiltflow {

TEST(io_tensorboard, RecordsHaveValidChecksums) {
  const test::TempDir dir;
  {
    EventWriter writer(dir.path(), 0);
    writer.scalar("a", 1, 2.5);
    writer.image("b", 1, at::rand({1, 4, 4}));
    writer.histogram("c", 1, at::randn({100}));
  }
  const std::string bytes = read_file(std::filesystem::directory_iterator(dir.path())->path());
  const auto masked = [](std::string_view text) {
    const std::uint32_t crc = crc32c(text);
    return ((crc >> 15) | (crc << 17)) + 0xa282ead8u;
  };
  const auto word = [&](std::size_t at) {
    std::uint32_t v;
    std::memcpy(&v, bytes.data() + at, 4);
    return v;
  };
  std::size_t offset = 0;
  int records = 0;
  while (offset < bytes.size()) {
    std::uint64_t length;
    std::memcpy(&length, bytes.data() + offset, 8);
    EXPECT_EQ(word(offset + 8), masked(std::string_view(bytes).substr(offset, 8)));
    EXPECT_EQ(word(offset + 12 + length),
              masked(std::string_view(bytes).substr(offset + 12, length)));
    offset += 16 + length;
    ++records;
  }
  EXPECT_EQ(records, 4);
}

// TensorBoard's accumulator forgets steps from a session start on, in the order of the files'
// names.
TEST(io_tensorboard, AContinuedRunTakesBackWhatItRepeats) {
  const test::TempDir dir;
  const auto files = [&] {
    std::set<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator(dir.path())) {
      names.insert(entry.path().filename().string());
    }
    return names;
  };
  const std::string start_at_7("\x10\x07\x3a\x02\x08\x01",
                               6);  // Event.step = 7, Event.session_log = {status: START}
  {
    const EventWriter first(dir.path(), 0);
  }
  const std::string before = *files().begin();
  EXPECT_EQ(read_file(dir / before).find("\x3a\x02\x08\x01"), std::string::npos)
      << "nothing to take back";
  {
    const EventWriter second(dir.path(), 7);
  }
  ASSERT_EQ(files().size(), 2u) << "made in the same second";
  EXPECT_EQ(*files().begin(), before) << "the new file is read last";
  EXPECT_NE(read_file(dir / *files().rbegin()).find(start_at_7), std::string::npos);
}

TEST(io_tensorboard, TagsAreInGroups) {
  const std::pair<const char*, const char*> known[] = {
      {"reward", "reward/mean"},   {"reward_deviation", "reward/deviation"},
      {"loss", "loss/total"},      {"matched_loss", "loss/matched"},
      {"eval_gap", "eval/gap"},    {"base_reward", "base/reward"},
      {"seconds", "time/seconds"}, {"ess", "train/ess"}};
  for (const auto& [metric, tag] : known) EXPECT_EQ(event_tag(metric), tag);
}

}  // namespace tiltflow
