// What is no file of tensors is named, with what to do about it; folders are searched for their
// weights.
#include "tiltflow/io/foreign_file.h"
#include "tests/support.h"
#include "tiltflow/base/file.h"
#include "tiltflow/io/tensor_file.h"
#include "tiltflow/io/zip_archive.h"

namespace tiltflow {
namespace {

using namespace std::string_literals;

const std::string kPointer =
    "version https://git-lfs.github.com/spec/v1\noid sha256:" + std::string(64, '0') +
    "\nsize 206960\n";

}  // namespace

TEST(io_foreign_file, IsNamedUnderEveryEnding) {
  const test::TempDir dir;
  const std::vector<std::pair<std::string, std::string>> cases{
      {kPointer, "a Git LFS pointer"},
      {"/annex/objects/SHA256E-s1--ab\n", "a git-annex pointer"},
      {"<!DOCTYPE html><html></html>........", "a web page (a failed download?)"},
      {"\n  <HTML><head></head></HTML>.......", "a web page"},
      {"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "an XML page"},
      {"Entry not found", "begins 'Entry not found'"},
      {"", "empty (0 bytes)"},
      {"GGUF\3\0\0\0"s, "a GGUF file"},
      {"\x89HDF\r\n\x1a\n\0\0"s, "an HDF5 file"},
      {"\x1f\x8b\x08\0\0\0\0\0\0\0"s, "compressed with gzip"},
      {"\x08\x07\x12\x07pytorch\x1a\x03"s, "an ONNX graph"},
      {"\x81\xa6params\x84\xa3"s, "a msgpack file (Flax)"},
      {"\x93NUMPY\x01\0v\0{'descr': '<f4'"s, "a NumPy array"},
      {std::string(257, '\0') + "ustar" + std::string(260, '\0'), "a tar archive"},
      {"\x80\x04\x95\x0b\0\0\0\0\0\0\0]\x94K\x01"s
       "a.",
       "a Python pickle that torch.save did not write"},
  };
  for (const auto& [bytes, what] : cases) {
    for (const char* name : {"x.safetensors", "x.pt", "x.bin"}) {
      write_file_atomic(dir / name, bytes);
      test::expect_error(ErrorKind::kBadFile, what, [&] { read_tensors(dir / name); });
    }
  }
  test::expect_error(ErrorKind::kBadFile, "is a folder", [&] { read_tensors(dir.path()); });
}

TEST(io_foreign_file, ArchivesThatHoldSomethingElse) {
  const test::TempDir dir;
  const std::vector<std::pair<std::string, std::string>> cases{
      {"m/constants.pkl", "TorchScript"}, {"m/archive_format", "exported program"},
      {"model.weights.h5", "Keras"},      {"a.npy", "NumPy archive"},
      {"model.pt", "a checkpoint in it"}, {"readme", "without data.pkl"}};
  for (const auto& [entry, what] : cases) {
    write_zip(dir / "x.pt", {{entry, "x"}});
    test::expect_error(ErrorKind::kBadFile, what, [&] { read_tensors(dir / "x.pt"); });
  }
}

// The length of a header may look like the beginning of anything: 0x8b1f is gzip's, 0x7b is that of
// JSON.
TEST(io_foreign_file, SafetensorsAreNotMistaken) {
  const test::TempDir dir;
  for (const std::size_t length : {std::size_t{0x8b1f}, std::size_t{0x7b}, std::size_t{0x207b}}) {
    std::string header = R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})";
    header.resize(length, ' ');
    std::string bytes(8, '\0');
    bytes[0] = static_cast<char>(length & 0xff);
    bytes[1] = static_cast<char>(length >> 8);
    write_file_atomic(dir / "x.safetensors", bytes + header + "\0\0\x80\x3f"s);
    EXPECT_EQ(read_tensors(dir / "x.safetensors").tensors.at("a").item<float>(), 1) << length;
  }
}

TEST(io_foreign_file, CutFilesSayBothSizes) {
  const test::TempDir dir;
  const std::string whole = read_file(test::golden("sit_a_ema.safetensors"));
  write_file_atomic(dir / "x.safetensors", whole.substr(0, whole.size() - 100));
  for (const std::size_t size : {whole.size(), whole.size() - 100}) {
    test::expect_error(ErrorKind::kBadFile, std::to_string(size),
                       [&] { read_tensors(dir / "x.safetensors"); });
  }
  const std::string archive = read_file(test::source_dir() / "tests/golden/torch/zip.pt");
  write_file_atomic(dir / "x.pt", archive.substr(0, archive.size() / 2));
  test::expect_error(ErrorKind::kBadFile, std::to_string(archive.size() / 2),
                     [&] { read_tensors(dir / "x.pt"); });
}

}  // namespace tiltflow
