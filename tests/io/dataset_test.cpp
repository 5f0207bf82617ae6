#include <zlib.h>

#include "tests/support.h"
#include "tiltflow/base/file.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/io/dataset.h"
#include "tiltflow/io/image.h"
#include "tiltflow/io/npz.h"
#include "tiltflow/tensor/random.h"

namespace tiltflow {
namespace {

std::string idx_file(int type, const std::vector<int>& dims, const std::string& data) {
  std::string out{0, 0, static_cast<char>(type), static_cast<char>(dims.size())};
  for (const int n : dims) out += std::string{0, 0, 0, static_cast<char>(n)};
  return out + data;
}

std::string gzip(const std::string& content) {
  z_stream stream{};
  EXPECT_EQ(deflateInit2(&stream, 6, Z_DEFLATED, 16 + MAX_WBITS, 8, Z_DEFAULT_STRATEGY), Z_OK);
  std::string out(content.size() + 128, '\0');
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(content.data()));
  stream.avail_in = static_cast<uInt>(content.size());
  stream.next_out = reinterpret_cast<Bytef*>(out.data());
  stream.avail_out = static_cast<uInt>(out.size());
  EXPECT_EQ(deflate(&stream, Z_FINISH), Z_STREAM_END);
  out.resize(stream.total_out);
  deflateEnd(&stream);
  return out;
}

}  // namespace

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
  test::expect_error(ErrorKind::kBadFile, "promises",
                     [&] { read_dataset({"idx", (dir.path()).string()}, "train"); });
  test::expect_error(ErrorKind::kBadFile, "not found",
                     [&] { read_dataset({"idx", (dir.path()).string()}, "test"); });

  std::filesystem::create_directories(dir / "pictures/train/cat");
  std::filesystem::create_directories(dir / "pictures/train/dog");
  write_png(dir / "pictures/train/cat/1.png", at::zeros({3, 8, 8}));
  write_png(dir / "pictures/train/dog/1.png", at::ones({3, 8, 8}));
  const ImageDataset folder = read_dataset({"folder", (dir / "pictures").string()}, "train");
  EXPECT_EQ(folder.class_names, (std::vector<std::string>{"cat", "dog"}));
  EXPECT_EQ(folder.batch(at::tensor(std::vector<std::int64_t>{1})).mean().item<float>(), 1);

  std::string records(2 * 3073, '\x01');
  write_file_atomic(dir / "data_batch_1.bin", records);
  EXPECT_EQ(read_dataset({"cifar", (dir.path()).string()}, "train").images.sizes().vec(),
            (std::vector<std::int64_t>{2, 3, 32, 32}));
  write_file_atomic(dir / "data_batch_1.bin", records.substr(1));
  test::expect_error(ErrorKind::kBadFile, "record size",
                     [&] { read_dataset({"cifar", (dir.path()).string()}, "train"); });
}

TEST(io_dataset, PicturesOfAnySizeInMemoryOrOnDisk) {
  const test::TempDir dir;
  std::filesystem::create_directories(dir / "a");
  std::filesystem::create_directories(dir / "b");
  write_png(dir / "a/grey.png", RandomStreams(1).uniform(Purpose::kProbe, 0, 0, 1, {1, 20, 31})[0]);
  write_png(dir / "b/wide.png", RandomStreams(1).uniform(Purpose::kProbe, 0, 1, 1, {3, 17, 40})[0]);
  write_file_atomic(dir / "b/x.JPG", encode_jpeg(RandomStreams(1).uniform(Purpose::kProbe, 0, 2, 1,
                                                                          {3, 50, 33})[0]));
  write_file_atomic(dir / "b/notes.txt", "no picture");
  const std::string path = dir.path().string();
  const ImageDataset memory = read_dataset({"folder", path, 16}, "train");
  const ImageDataset disk = read_dataset({"folder", path, 16, 100}, "train");
  EXPECT_TRUE(memory.images.defined());
  EXPECT_FALSE(disk.images.defined());
  EXPECT_EQ(memory.size(), 3);
  EXPECT_EQ(disk.shape(), (std::vector<std::int64_t>{3, 16, 16}));
  const at::Tensor some = at::tensor(std::vector<std::int64_t>{2, 0});
  EXPECT_TRUE(at::equal(memory.batch(some), disk.batch(some)));
  EXPECT_TRUE(at::equal(memory.batch(some)[1][0], memory.batch(some)[1][2]))
      << "grey among colours becomes RGB";
  const std::string before = fingerprint(disk);
  EXPECT_EQ(before, fingerprint(read_dataset({"folder", path, 16, 100}, "train")));
  write_png(dir / "a/grey.png", at::zeros({1, 20, 31}));
  EXPECT_NE(before, fingerprint(read_dataset({"folder", path, 16, 100}, "train")));
  write_png(dir / "a/grey.png", at::zeros({1, 1, 600}));
  test::expect_error(ErrorKind::kBadFile, "grey.png: 1 x 600 pixels are too narrow a strip",
                     [&] { read_dataset({"folder", path, 512}, "train"); });
}

// The element types of the format's description; QMNIST has its labels as int32, for example.
TEST(io_dataset, IdxOfOtherTypes) {
  const test::TempDir dir;
  const auto read = [&] { return read_dataset({"idx", dir.path().string()}, "train"); };
  write_file_atomic(dir / "train-images-idx3-ubyte", idx_file(8, {2, 1, 2}, "abcd"));
  write_file_atomic(dir / "train-labels-idx1-ubyte",
                    idx_file(0x0c, {2}, std::string("\0\0\0\5\0\0\1\0", 8)));
  EXPECT_TRUE(at::equal(read().labels, at::tensor({5, 256}, at::kLong)));
  write_file_atomic(dir / "train-labels-idx1-ubyte",
                    idx_file(0x0b, {2}, std::string("\0\2\xff\xff", 4)));
  test::expect_error(ErrorKind::kBadFile, "labels reach from -1", read);
  write_file_atomic(dir / "train-labels-idx1-ubyte",
                    idx_file(0x0c, {2}, std::string("\0\0\0\5\x7f\xff\xff\xff", 8)));
  test::expect_error(ErrorKind::kBadFile, "2147483647", read);
  write_file_atomic(dir / "train-labels-idx1-ubyte", idx_file(0x0d, {2}, std::string(8, '\0')));
  test::expect_error(ErrorKind::kBadFile, "not whole numbers", read);
  write_file_atomic(dir / "train-labels-idx1-ubyte", idx_file(8, {2}, std::string("\0\1", 2)));
  write_file_atomic(dir / "train-images-idx3-ubyte",
                    idx_file(0x0e, {2, 1, 1}, std::string(16, '\0')));
  test::expect_error(ErrorKind::kBadFile, "only bytes", read);
  write_file_atomic(dir / "train-images-idx3-ubyte", idx_file(8, {2, 1, 2}, "abcde"));
  test::expect_error(ErrorKind::kBadFile, "5 data bytes, the header promises 4", read);
  write_file_atomic(dir / "train-images-idx3-ubyte", idx_file(8, {2, 2}, "abcd"));
  test::expect_error(ErrorKind::kBadFile, "2 dimensions, expected 3", read);
  write_file_atomic(dir / "train-images-idx3-ubyte", idx_file(7, {2, 1, 2}, "abcd"));
  test::expect_error(ErrorKind::kBadFile, "element type 7", read);
  write_file_atomic(dir / "train-images-idx3-ubyte", idx_file(8, {0, 1, 2}, ""));
  test::expect_error(ErrorKind::kBadFile, "no pictures", read);
}

// As Python's gzip: members follow each other, zeros pad, anything else is an error.
TEST(io_dataset, GzipOfSeveralMembers) {
  const test::TempDir dir;
  const auto read = [&](const std::string& bytes) {
    write_file_atomic(dir / "x.gz", bytes);
    return read_file_gz(dir / "x.gz");
  };
  const std::string large(300000, 'q');
  EXPECT_EQ(read(gzip("one ") + gzip("") + gzip(large)), "one " + large);
  EXPECT_EQ(read(gzip("one") + std::string(512, '\0')), "one");
  EXPECT_EQ(read("plain"), "plain");
  test::expect_error(ErrorKind::kBadFile, "x.gz: bytes after the gzip data",
                     [&] { read(gzip("one") + "garbage"); });
  const std::string two = gzip("one") + gzip(large);
  for (const std::size_t cut :
       {std::size_t{5}, gzip("one").size() - 4, gzip("one").size() + 12, two.size() - 1}) {
    test::expect_error(ErrorKind::kBadFile, "x.gz: ", [&] { read(two.substr(0, cut)); });
  }
  write_file_atomic(dir / "x.gz", gzip(large));
  test::expect_error(ErrorKind::kBadFile, "larger than the allowed",
                     [&] { read_file_gz(dir / "x.gz", 1000); });
}

TEST(io_dataset, CifarHundredIsRecognised) {
  const test::TempDir dir;
  write_file_atomic(dir / "train.bin", std::string(2 * 3074, '\1'));
  try {
    read_dataset({"cifar", dir.path().string()}, "train");
    FAIL();
  } catch (const Error& error) {
    EXPECT_NE(error.hint().find("CIFAR-100"), std::string::npos);
  }
}

TEST(io_dataset, NumpyImages) {
  const test::TempDir dir;
  ParameterSet arrays;
  arrays.add("arr_0", at::arange(24, at::kByte).view({2, 2, 2, 3}));
  arrays.add("arr_1", at::tensor({3, 1}, at::kLong));
  write_npz(dir / "x.npz", arrays);
  const ImageDataset data = read_dataset({"numpy", (dir / "x.npz").string()}, "train");
  EXPECT_EQ(data.classes(), 4);
  EXPECT_EQ(data.images[1][2][0][1].item<int>(), 12 + 3 + 2) << "channels last";
  DatasetConfig grey{"numpy", (dir / "x.npz").string()};
  grey.channels = "grey";
  EXPECT_EQ(read_dataset(grey, "train").shape(), (std::vector<std::int64_t>{1, 2, 2}));
  arrays = {};
  arrays.add("arr_0", at::rand({2, 2, 2, 3}));
  write_npz(dir / "float.npz", arrays);
  test::expect_error(ErrorKind::kBadFile, "only bytes",
                     [&] { read_dataset({"numpy", (dir / "float.npz").string()}, "train"); });
}

// Arrays under other names are no labels, and that is said; a single picture is no set of rows.
TEST(io_dataset, NumpyImagesWithoutLabels) {
  const test::TempDir dir;
  const auto read = [&](const ParameterSet& arrays) {
    write_npz(dir / "x.npz", arrays);
    return read_dataset({"numpy", (dir / "x.npz").string()}, "train");
  };
  ParameterSet arrays;
  arrays.add("images", at::zeros({2, 5, 5, 3}, at::kByte));
  EXPECT_TRUE(read(arrays).notes.empty());
  arrays.add("y", at::ones({2}, at::kLong));
  EXPECT_NE(read(arrays).notes.at(0).find("not read: y"), std::string::npos);
  ParameterSet picture;
  picture.add("arr_0", at::zeros({5, 5, 3}, at::kByte));
  test::expect_error(ErrorKind::kBadFile, "looks like a single picture", [&] { read(picture); });
}

// The same records packed and unpacked count once; what differs from the original's five files is
// said.
TEST(io_dataset, CifarFilesAreCountedOnce) {
  const test::TempDir dir;
  const std::string record(3073, '\x01');
  for (const char* number : {"1", "2", "3", "4"}) {
    write_file_atomic(dir / cat("data_batch_", number, ".bin"), record);
  }
  write_file_atomic(dir / "data_batch_1.bin.gz", "not read");
  const ImageDataset data = read_dataset({"cifar", dir.path().string()}, "train");
  EXPECT_EQ(data.size(), 4);
  EXPECT_NE(data.notes.at(0).find("missing: data_batch_5.bin"), std::string::npos)
      << data.notes.at(0);
  write_file_atomic(dir / "data_batch_5.bin", record);
  EXPECT_TRUE(read_dataset({"cifar", dir.path().string()}, "train").notes.empty());
}

}  // namespace tiltflow
