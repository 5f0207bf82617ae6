#include "tiltflow/io/weight_files.h"
#include "tests/support.h"
#include "tiltflow/base/file.h"
#include "tiltflow/io/zip_archive.h"

namespace tiltflow {

// The names that diffusers and transformers give their files, one at a time.
TEST(io_weight_files, EverySpellingIsFound) {
  const std::vector<std::string> names{"model.safetensors",
                                       "model.safetensors.index.json",
                                       "model.bin",
                                       "model.bin.index.json",
                                       "model.fp16.safetensors",
                                       "model.safetensors.index.fp16.json",
                                       "model.fp16.safetensors.index.json",
                                       "model.bf16.bin"};
  for (const std::string& name : names) {
    const test::TempDir dir;
    write_file_atomic(dir / name, "x");
    write_file_atomic(dir / "model.non_ema.safetensors", "x");
    EXPECT_EQ(find_weights(dir.path(), {"other", "model"}).filename().string(), name);
  }
  const test::TempDir dir;
  write_file_atomic(dir / "model.fp16.safetensors", "x");
  write_file_atomic(dir / "model.bin", "x");
  EXPECT_EQ(find_weights(dir.path(), {"model"}).filename(),
            "model.bin");  // no variant before variants
  std::filesystem::remove(dir / "model.bin");
  std::filesystem::rename(dir / "model.fp16.safetensors", dir / "model.non_ema.safetensors");
  test::expect_error(ErrorKind::kBadFile, "has no model.safetensors or .bin",
                     [&] { find_weights(dir.path(), {"model"}); });
}

}  // namespace tiltflow
