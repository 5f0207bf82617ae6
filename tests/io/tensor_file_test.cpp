#include "tiltflow/io/tensor_file.h"
#include "tests/support.h"
#include "tiltflow/base/file.h"
#include "tiltflow/io/torch_file.h"

namespace tiltflow {

TEST(io_tensor_file, ShardsMayBePyTorchFiles) {
  const test::TempDir dir;
  ParameterSet first, second;
  first.add("a", at::full({2}, 1.5));
  second.add("b.c", at::full({3}, -2.0));
  write_torch_file(dir / "m-00001-of-00002.bin", {{"", first}});
  write_torch_file(dir / "m-00002-of-00002.bin", {{"", second}});
  const std::string map =
      R"({"weight_map": {"a": "m-00001-of-00002.bin", "b.c": "m-00002-of-00002.bin"}})";
  write_file_atomic(dir / "m.bin.index.fp16.json", map);
  const ParameterSet tensors = read_tensors(dir / "m.bin.index.fp16.json").tensors;
  EXPECT_EQ(tensors.at("a")[0].item<double>(), 1.5);
  EXPECT_EQ(tensors.at("b.c")[2].item<double>(), -2);
  std::filesystem::remove(dir / "m-00002-of-00002.bin");
  test::expect_error(ErrorKind::kBadFile, "its shard m-00002-of-00002.bin is not there",
                     [&] { read_tensors(dir / "m.bin.index.fp16.json"); });
}

}  // namespace tiltflow
