#include <cstring>
#include <set>

#include "tests/support.h"
#include "tiltflow/base/file.h"
#include "tiltflow/base/hash.h"
#include "tiltflow/io/image.h"
#include "tiltflow/io/json_lines.h"
#include "tiltflow/io/tensorboard.h"

namespace tiltflow {
namespace {

std::string safetensors_bytes(const std::string& header, std::size_t data) {
  const std::uint64_t length = header.size();
  std::string out(8, '\0');
  std::memcpy(out.data(), &length, 8);
  return out + header + std::string(data, '\0');
}

void expect_rejected(const std::string& bytes, const std::string& reason) {
  const test::TempDir dir;
  write_file_atomic(dir / "x.safetensors", bytes);
  test::expect_error(ErrorKind::kBadFile, reason, [&] { read_safetensors(dir / "x.safetensors"); });
}

}  // namespace

TEST(io_safetensors, RoundTripOfEveryType) {
  const test::TempDir dir;
  ParameterSet set;
  int i = 0;
  for (const auto type : {at::kDouble, at::kFloat, at::kHalf, at::kBFloat16, at::kLong, at::kInt,
                          at::kShort, at::kChar, at::kByte, at::kBool}) {
    set.add("t" + std::to_string(i++), at::arange(6).reshape({2, 3}).to(type));
  }
  set.add("empty", at::zeros({0, 4}));
  set.add("scalar", at::full({}, 2.5));
  set.add("view", at::arange(6, at::kFloat).reshape({2, 3}).t());
  write_safetensors(dir / "a.safetensors", set, {{"k", "v \"quoted\""}});
  const TensorFile file = read_safetensors(dir / "a.safetensors");
  EXPECT_EQ(file.metadata.at("k"), "v \"quoted\"");
  EXPECT_EQ(file.tensors.size(), set.size());
  for (const auto& [name, tensor] : set) {
    EXPECT_EQ(file.tensors.at(name).scalar_type(), tensor.scalar_type()) << name;
    EXPECT_TRUE(at::equal(file.tensors.at(name), tensor)) << name;
  }
}

TEST(io_safetensors, HostileFilesAreRejected) {
  expect_rejected("", "empty (0 bytes)");
  expect_rejected(std::string(8, '\xff'), "header length");
  expect_rejected(safetensors_bytes("{}", 0).substr(0, 9), "does not fit");
  expect_rejected(safetensors_bytes("[]", 0), "not a JSON object");
  expect_rejected(safetensors_bytes("{\"a\":", 0), "not valid JSON");
  expect_rejected(
      safetensors_bytes(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,16]}})", 8),
      "its shape needs");
  expect_rejected(
      safetensors_bytes(R"({"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}})", 8),
      "is cut: its header describes");
  expect_rejected(safetensors_bytes(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}})", 8),
                  "run backwards");
  expect_rejected(safetensors_bytes(R"({"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}})", 8),
                  "its shape needs");
  expect_rejected(
      safetensors_bytes(
          R"({"a":{"dtype":"F32","shape":[4611686018427387904,16],"data_offsets":[0,8]}})", 8),
      "overflow");
  expect_rejected(
      safetensors_bytes(
          R"({"a":{"dtype":"F32","shape":[0,4611686018427387904,16],"data_offsets":[0,0]}})", 0),
      "overflow");
  expect_rejected(
      safetensors_bytes(R"({"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,8]}})", 8),
      "non-negative");
  expect_rejected(safetensors_bytes(R"({"a":{"dtype":"X9","shape":[2],"data_offsets":[0,8]}})", 8),
                  "unsupported type");
  expect_rejected(
      safetensors_bytes(
          R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})",
          8),
      "appears twice");
  expect_rejected(
      safetensors_bytes(
          R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}})",
          12),
      "overlaps");
  expect_rejected(safetensors_bytes(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})", 8),
                  "unused bytes");
  expect_rejected(safetensors_bytes(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})", 8),
                  "unused bytes");
  expect_rejected(safetensors_bytes(R"({"__metadata__":{"a":1}})", 0), "not a string");
  expect_rejected(safetensors_bytes(R"({"a":[[[[[[1]]]]]]})", 0), "nested");
  expect_rejected(safetensors_bytes(R"({"a":3})", 0), "lacks");
}

TEST(io_safetensors, EveryTruncationIsAnErrorNotACrash) {
  const std::string bytes = read_file(test::golden("train_steps.safetensors"));
  const test::TempDir dir;
  for (std::size_t n = 0; n < bytes.size(); n += 997) {
    write_file_atomic(dir / "x.safetensors", bytes.substr(0, n));
    EXPECT_THROW(read_safetensors(dir / "x.safetensors"), Error) << n;
  }
}

TEST(io_image, PngAndJpegRoundTrip) {
  const at::Tensor image = at::rand({3, 9, 13}).mul(255).round().div(255);
  EXPECT_LT((decode_image(encode_png(image, {{"k", "v"}}), "x") - image).abs().max().item<double>(),
            1e-6);
  EXPECT_EQ(decode_image(encode_png(image[0].unsqueeze(0)), "x").size(0), 1);
  const at::Tensor smooth = at::linspace(0, 1, 32).view({1, 1, 32}).expand({3, 32, 32});
  EXPECT_LT((decode_image(encode_jpeg(smooth), "x") - smooth).abs().max().item<double>(), 0.05);
}

TEST(io_image, BrokenPicturesAreErrors) {
  const std::string png = encode_png(at::rand({1, 20, 20}));
  const std::string jpeg = encode_jpeg(at::rand({1, 20, 20}));
  test::expect_error(ErrorKind::kBadFile, "x",
                     [&] { decode_image(png.substr(0, png.size() / 2), "x"); });
  test::expect_error(ErrorKind::kBadFile, "x", [&] { decode_image("\xff\xd8 nothing", "x"); });
  EXPECT_EQ(decode_image(jpeg, "x").size(1), 20);
}

TEST(io_image, GridLayout) {
  const at::Tensor grid = image_grid(at::ones({5, 1, 4, 4}), 3);
  EXPECT_EQ(grid.sizes().vec(), (std::vector<std::int64_t>{1, 2 * 6 + 2, 3 * 6 + 2}));
  EXPECT_EQ(grid[0][0][0].item<float>(), 0);
  EXPECT_EQ(grid[0][2][2].item<float>(), 1);
}

TEST(io_json_lines, HalfALineIsForgotten) {
  const test::TempDir dir;
  {
    JsonLines lines(dir / "m.jsonl");
    lines.write({{"step", 1}, {"x", json_number(std::nan(""))}});
  }
  LineAppender(dir / "m.jsonl").write("{\"step\": 2");
  const auto lines = read_json_lines(dir / "m.jsonl");
  ASSERT_EQ(lines.size(), 1u);
  EXPECT_TRUE(std::isnan(number_from_json(lines[0]["x"])));
}

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
