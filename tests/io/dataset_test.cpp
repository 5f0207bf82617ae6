#include "tests/support.h"
#include "tiltflow/base/file.h"
#include "tiltflow/io/dataset.h"
#include "tiltflow/io/image.h"
#include "tiltflow/io/npz.h"
#include "tiltflow/io/resize.h"
#include "tiltflow/tensor/random.h"

namespace tiltflow {

TEST(io_dataset, IdxFolderAndErrors) {
  const test::TempDir dir;
  const auto idx = [](std::vector<int> dims, std::size_t data) {
    std::string out{0, 0, 8, static_cast<char>(dims.size())};
    for (const int n : dims) out += std::string{0, 0, 0, static_cast<char>(n)};
    return out + std::string(data, '\x03');
  };
  write_file_atomic(dir / "train-images-idx3-ubyte", idx({2, 4, 4}, 32));
  write_file_atomic(dir / "train-labels-idx1-ubyte", idx({2}, 2));
  const ImageDataset data = read_dataset({"idx", (dir.path()).string()}, "train");
  EXPECT_EQ(data.images.sizes().vec(), (std::vector<std::int64_t>{2, 1, 4, 4}));
  EXPECT_EQ(data.labels[1].item<int>(), 3);
  EXPECT_EQ(data.classes(), 4);
  write_file_atomic(dir / "train-labels-idx1-ubyte", idx({2}, 1));
  test::expect_error(ErrorKind::kBadFile, "promises", [&] { read_dataset({"idx", (dir.path()).string()}, "train"); });
  test::expect_error(ErrorKind::kBadFile, "not found", [&] { read_dataset({"idx", (dir.path()).string()}, "test"); });

  std::filesystem::create_directories(dir / "pictures/train/cat");
  std::filesystem::create_directories(dir / "pictures/train/dog");
  write_png(dir / "pictures/train/cat/1.png", at::zeros({3, 8, 8}));
  write_png(dir / "pictures/train/dog/1.png", at::ones({3, 8, 8}));
  const ImageDataset folder = read_dataset({"folder", (dir / "pictures").string()}, "train");
  EXPECT_EQ(folder.class_names, (std::vector<std::string>{"cat", "dog"}));
  EXPECT_EQ(folder.batch(at::tensor(std::vector<std::int64_t>{1})).mean().item<float>(), 1);

  std::string records(2 * 3073, '\x01');
  write_file_atomic(dir / "data_batch_1.bin", records);
  EXPECT_EQ(read_dataset({"cifar", (dir.path()).string()}, "train").images.sizes().vec(), (std::vector<std::int64_t>{2, 3, 32, 32}));
  write_file_atomic(dir / "data_batch_1.bin", records.substr(1));
  test::expect_error(ErrorKind::kBadFile, "record size", [&] { read_dataset({"cifar", (dir.path()).string()}, "train"); });
}

// Values of Pillow 12 (Image.resize with BOX and BICUBIC, as guided diffusion's center_crop_arr applies them) on a picture made of
// a formula: sum of all bytes, a weighted sum and three pixels.
TEST(io_resize, CenterCropEqualsPillow) {
  struct Case {
    std::int64_t height, width, size, sum, weighted;
    std::vector<std::int64_t> first, inner, last;
  };
  for (const Case& c : {Case{37, 53, 8, 24538, 1164571, {133, 135, 119}, {104, 125, 127}, {142, 120, 120}}, Case{16, 23, 12, 54696, 2464843, {98, 149, 143}, {99, 84, 85}, {134, 169, 112}},
                        Case{9, 11, 16, 102189, 4894746, {84, 136, 202}, {196, 102, 102}, {8, 143, 6}}, Case{31, 31, 31, 365989, 17483173, {0, 53, 106}, {13, 216, 163}, {110, 39, 224}}}) {
    at::Tensor picture = at::empty({3, c.height, c.width}, at::kByte);
    auto p = picture.accessor<std::uint8_t, 3>();
    for (std::int64_t k = 0; k < 3; ++k) for (std::int64_t y = 0; y < c.height; ++y) for (std::int64_t x = 0; x < c.width; ++x) p[k][y][x] = static_cast<std::uint8_t>((37 * y * y + 101 * x + 53 * k + x * y * (k + 1)) % 256);
    const at::Tensor out = center_crop(picture, c.size).to(at::kLong);
    ASSERT_EQ(out.sizes().vec(), (std::vector<std::int64_t>{3, c.size, c.size}));
    EXPECT_EQ(out.sum().item<std::int64_t>(), c.sum);
    EXPECT_EQ((out.flatten() * at::remainder(at::arange(out.numel()), 97)).sum().item<std::int64_t>(), c.weighted);
    EXPECT_TRUE(at::equal(out.select(1, 0).select(1, 0), at::tensor(c.first, at::kLong)));
    EXPECT_TRUE(at::equal(out.select(1, c.size / 2).select(1, c.size / 3), at::tensor(c.inner, at::kLong)));
    EXPECT_TRUE(at::equal(out.select(1, c.size - 1).select(1, c.size - 1), at::tensor(c.last, at::kLong)));
  }
}

TEST(io_dataset, PicturesOfAnySizeInMemoryOrOnDisk) {
  const test::TempDir dir;
  std::filesystem::create_directories(dir / "a"), std::filesystem::create_directories(dir / "b");
  write_png(dir / "a/grey.png", RandomStreams(1).uniform(Purpose::kProbe, 0, 0, 1, {1, 20, 31})[0]);
  write_png(dir / "b/wide.png", RandomStreams(1).uniform(Purpose::kProbe, 0, 1, 1, {3, 17, 40})[0]);
  write_file_atomic(dir / "b/x.JPG", encode_jpeg(RandomStreams(1).uniform(Purpose::kProbe, 0, 2, 1, {3, 50, 33})[0]));
  write_file_atomic(dir / "b/notes.txt", "no picture");
  const std::string path = dir.path().string();
  const ImageDataset memory = read_dataset({"folder", path, 16}, "train"), disk = read_dataset({"folder", path, 16, 100}, "train");
  EXPECT_TRUE(memory.images.defined());
  EXPECT_FALSE(disk.images.defined());
  EXPECT_EQ(memory.size(), 3);
  EXPECT_EQ(disk.shape(), (std::vector<std::int64_t>{3, 16, 16}));
  const at::Tensor some = at::tensor(std::vector<std::int64_t>{2, 0});
  EXPECT_TRUE(at::equal(memory.batch(some), disk.batch(some)));
  EXPECT_TRUE(at::equal(memory.batch(some)[1][0], memory.batch(some)[1][2])) << "grey among colours becomes RGB";
  const std::string before = fingerprint(disk);
  EXPECT_EQ(before, fingerprint(read_dataset({"folder", path, 16, 100}, "train")));
  write_png(dir / "a/grey.png", at::zeros({1, 20, 31}));
  EXPECT_NE(before, fingerprint(read_dataset({"folder", path, 16, 100}, "train")));
  test::expect_error(ErrorKind::kBadFile, "others are", [&] { read_dataset({"folder", path}, "train"); });
}

// numpy.savez_compressed: deflated, one array in Fortran order.
TEST(io_npz, ReadsWhatNumPyWrites) {
  const ParameterSet t = read_npz(test::source_dir() / "tests/golden/numpy/statistics.npz");
  EXPECT_TRUE(at::equal(t.at("mu"), at::arange(3, at::kDouble)));
  EXPECT_TRUE(at::equal(t.at("sigma"), at::eye(3, at::kDouble) * 2 + at::arange(9, at::kDouble).view({3, 3}).t()));
  const test::TempDir dir;
  write_npz(dir / "x.npz", t);
  EXPECT_TRUE(at::equal(read_npz(dir / "x.npz").at("sigma"), t.at("sigma")));
  std::string bytes = read_file(dir / "x.npz");
  bytes.replace(bytes.find("<f8"), 3, "|O8");
  write_file_atomic(dir / "object.npz", bytes);
  test::expect_error(ErrorKind::kBadFile, "", [&] { read_npz(dir / "object.npz"); });
}

}  // namespace tiltflow
