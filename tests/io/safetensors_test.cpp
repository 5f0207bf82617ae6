#include <cstring>

#include "tests/support.h"
#include "tiltflow/base/file.h"
#include "tiltflow/io/safetensors.h"

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
  expect_rejected(safetensors_bytes(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)"
                                    R"("a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})",
                                    8),
                  "appears twice");
  expect_rejected(safetensors_bytes(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)"
                                    R"("b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}})",
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

}  // namespace tiltflow
