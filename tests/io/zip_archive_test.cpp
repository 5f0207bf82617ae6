#include <cstring>

#include "tests/support.h"
#include "tiltflow/base/file.h"
#include "tiltflow/io/zip_archive.h"

namespace tiltflow {

TEST(io_zip_archive, RefusesWhatPointsOutside) {
  const test::TempDir dir;
  write_zip(dir / "a.zip", {{"x/data", "hello"}, {"y", ""}});
  const std::string bytes = read_file(dir / "a.zip");
  EXPECT_EQ(bytes.find("hello") % 64, 0u);
  const auto with = [&](std::size_t from_end, std::uint32_t value) {
    std::string changed = bytes;
    std::memcpy(changed.data() + changed.size() - from_end, &value, 4);
    write_file_atomic(dir / "b.zip", changed);
    const MappedFile file(dir / "b.zip");
    ZipArchive(file, "b").stored("x/data");
  };
  test::expect_error(ErrorKind::kBadFile, "leaves the file",
                     [&] { with(6, 1u << 30); });  // offset of the directory
  test::expect_error(ErrorKind::kBadFile, "leaves the file",
                     [&] { with(10, 1u << 30); });  // its size
  std::string damaged = bytes;
  damaged[damaged.find("hello")] = 'j';
  write_file_atomic(dir / "c.zip", damaged);
  const MappedFile file(dir / "c.zip");
  test::expect_error(ErrorKind::kBadFile, "checksum",
                     [&] { ZipArchive(file, "c").stored("x/data"); });
  EXPECT_EQ(ZipArchive(file, "c").stored("y"), "");
  test::expect_error(ErrorKind::kBadFile, "no entry 'z'",
                     [&] { ZipArchive(file, "c").stored("z"); });
}

}  // namespace tiltflow
