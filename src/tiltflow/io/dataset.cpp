#include "tiltflow/io/dataset.h"

#include <algorithm>
#include <cstring>

#include "tiltflow/base/error.h"
#include "tiltflow/base/file.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/io/image.h"
#include "tiltflow/tensor/aten.h"

namespace tiltflow {
namespace {

namespace fs = std::filesystem;

fs::path with_or_without_gz(const fs::path& path) {
  if (fs::exists(path)) return path;
  const fs::path zipped = path.string() + ".gz";
  if (fs::exists(zipped)) return zipped;
  fail(ErrorKind::kBadFile, cat("data file not found: ", path.string(), "[.gz]"), "set data.path to the folder that holds it");
}

std::uint32_t big_endian(const std::string& bytes, std::size_t offset) {
  std::uint32_t value = 0;
  for (std::size_t i = 0; i < 4; ++i) value = (value << 8) | static_cast<unsigned char>(bytes[offset + i]);
  return value;
}

// idx: two zero bytes, type 8 (uint8), number of dimensions, dimensions big-endian, data.
at::Tensor read_idx(const fs::path& path, int dimensions) {
  const std::string bytes = read_file_gz(path);
  const std::size_t header = 4 + 4 * static_cast<std::size_t>(dimensions);
  if (bytes.size() < header || big_endian(bytes, 0) != (0x800u | static_cast<unsigned>(dimensions))) {
    fail(ErrorKind::kBadFile, cat(path.string(), ": not an idx file of bytes with ", dimensions, " dimensions"));
  }
  std::vector<std::int64_t> shape;
  std::uint64_t count = 1;
  for (int i = 0; i < dimensions; ++i) {
    shape.push_back(big_endian(bytes, 4 + 4 * static_cast<std::size_t>(i)));
    count *= static_cast<std::uint64_t>(shape.back());
    if (count > bytes.size()) break;
  }
  if (count != bytes.size() - header) fail(ErrorKind::kBadFile, cat(path.string(), ": ", bytes.size() - header, " data bytes, the header promises ", count));
  at::Tensor out = at::empty(shape, at::kByte);
  std::memcpy(out.data_ptr(), bytes.data() + header, bytes.size() - header);
  return out;
}

std::vector<std::string> digit_names(std::int64_t n) {
  std::vector<std::string> names;
  for (std::int64_t i = 0; i < n; ++i) names.push_back(std::to_string(i));
  return names;
}

ImageDataset read_idx_pair(const fs::path& folder, const std::string& split) {
  const std::string prefix = split == "train" ? "train" : "t10k";
  ImageDataset data;
  data.images = read_idx(with_or_without_gz(folder / (prefix + "-images-idx3-ubyte")), 3).unsqueeze(1);
  data.labels = read_idx(with_or_without_gz(folder / (prefix + "-labels-idx1-ubyte")), 1).to(at::kLong);
  if (data.images.size(0) != data.labels.size(0)) fail(ErrorKind::kBadFile, cat(folder.string(), ": ", data.images.size(0), " images but ", data.labels.size(0), " labels"));
  data.class_names = digit_names(data.labels.numel() ? data.labels.max().item<std::int64_t>() + 1 : 0);
  return data;
}

ImageDataset read_cifar(const fs::path& folder, const std::string& split) {
  constexpr std::size_t kRecord = 1 + 3 * 32 * 32;
  std::vector<fs::path> files;
  std::error_code code;
  for (const auto& entry : fs::directory_iterator(folder, code)) {
    const std::string name = entry.path().filename().string();
    const bool binary = ends_with(name, ".bin") || ends_with(name, ".bin.gz");
    const bool test = name.find("test") != std::string::npos;
    const bool train = name.find("train") != std::string::npos || starts_with(name, "data_batch");
    if (binary && (split == "test" ? test : train && !test)) files.push_back(entry.path());
  }
  if (files.empty()) fail(ErrorKind::kBadFile, cat("no CIFAR binary files for the ", split, " split in ", folder.string()), "set data.path to the folder that holds them");
  std::sort(files.begin(), files.end());
  std::vector<at::Tensor> images, labels;
  for (const fs::path& file : files) {
    const std::string bytes = read_file_gz(file);
    if (bytes.empty() || bytes.size() % kRecord) fail(ErrorKind::kBadFile, cat(file.string(), ": ", bytes.size(), " bytes is not a multiple of the record size ", kRecord));
    at::Tensor records = at::empty({static_cast<std::int64_t>(bytes.size() / kRecord), static_cast<std::int64_t>(kRecord)}, at::kByte);
    std::memcpy(records.data_ptr(), bytes.data(), bytes.size());
    labels.push_back(records.select(1, 0).to(at::kLong));
    images.push_back(records.narrow(1, 1, kRecord - 1).reshape({-1, 3, 32, 32}));
  }
  ImageDataset data{at::cat(images), at::cat(labels), digit_names(10)};
  if (data.labels.max().item<std::int64_t>() > 9) fail(ErrorKind::kBadFile, cat(folder.string(), ": a label exceeds 9; not CIFAR-10 records"));
  return data;
}

ImageDataset read_folder(fs::path folder, const std::string& split) {
  if (fs::is_directory(folder / split)) folder /= split;
  if (!fs::is_directory(folder)) fail(ErrorKind::kBadFile, cat("image folder not found: ", folder.string()));
  std::vector<fs::path> classes;
  for (const auto& entry : fs::directory_iterator(folder)) if (entry.is_directory()) classes.push_back(entry.path());
  std::sort(classes.begin(), classes.end());
  ImageDataset data;
  std::vector<at::Tensor> images;
  std::vector<std::int64_t> labels;
  for (const fs::path& path : classes) {
    std::vector<fs::path> files;
    for (const auto& entry : fs::directory_iterator(path)) if (entry.is_regular_file()) files.push_back(entry.path());
    std::sort(files.begin(), files.end());
    for (const fs::path& file : files) {
      const at::Tensor image = read_image(file);
      if (!images.empty() && image.sizes() != images.front().sizes()) fail(ErrorKind::kBadFile, cat(file.string(), ": size differs from the other pictures"), "all pictures must have the same size and channels");
      images.push_back(image.mul(255).round().to(at::kByte));
      labels.push_back(data.classes());
    }
    data.class_names.push_back(path.filename().string());
  }
  if (images.empty()) fail(ErrorKind::kBadFile, cat("no pictures in ", folder.string()), "expected one sub-folder per class with PNG or JPEG files");
  data.images = at::stack(images);
  data.labels = at::tensor(labels, at::kLong);
  return data;
}

}  // namespace

std::int64_t ImageDataset::size() const { return images.size(0); }

at::Tensor ImageDataset::batch(const at::Tensor& indices) const { return images.index_select(0, indices).to(at::kFloat).div(255); }

ImageDataset read_dataset(const std::string& format, const fs::path& path, const std::string& split) {
  if (format == "idx") return read_idx_pair(path, split);
  if (format == "cifar") return read_cifar(path, split);
  if (format == "folder") return read_folder(path, split);
  fail(ErrorKind::kConfig, cat("data.format '", format, "' is unknown", did_you_mean(format, {"idx", "cifar", "folder"})), "use idx, cifar or folder");
}

}  // namespace tiltflow
