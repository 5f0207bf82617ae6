#include "tiltflow/io/dataset.h"

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <cstring>

#include "tiltflow/base/error.h"
#include "tiltflow/base/file.h"
#include "tiltflow/base/hash.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/io/image.h"
#include "tiltflow/io/resize.h"
#include "tiltflow/io/safetensors.h"
#include "tiltflow/io/split_folder.h"
#include "tiltflow/tensor/aten.h"
#include "tiltflow/tensor/parallel.h"

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
  ImageDataset data;
  data.images = at::cat(images), data.labels = at::cat(labels), data.class_names = digit_names(10);
  if (data.labels.max().item<std::int64_t>() > 9) fail(ErrorKind::kBadFile, cat(folder.string(), ": a label exceeds 9; not CIFAR-10 records"));
  return data;
}

bool is_picture(const fs::path& file) {
  std::string suffix = file.extension().string();
  for (char& c : suffix) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return suffix == ".png" || suffix == ".jpg" || suffix == ".jpeg";
}

}  // namespace

at::Tensor state_of_bytes(const at::Tensor& bytes) { return bytes.to(at::kFloat).div(255).mul(2).sub(1); }
at::Tensor bytes_of_state(const at::Tensor& state) { return state.add(1).mul(127.5).round().clamp(0, 255).to(at::kByte); }

PictureList list_pictures(const DatasetConfig& config, const std::string& split) {
  const fs::path folder = split_folder(config.path, split).folder;
  if (!fs::is_directory(folder)) fail(ErrorKind::kBadFile, cat("image folder not found: ", folder.string()));
  std::vector<fs::path> classes;
  for (const auto& entry : fs::directory_iterator(folder)) if (entry.is_directory()) classes.push_back(entry.path());
  std::sort(classes.begin(), classes.end());
  PictureList list;
  for (const fs::path& path : classes) {
    const std::size_t first = list.files.size();
    for (const auto& entry : fs::directory_iterator(path)) if (entry.is_regular_file() && is_picture(entry.path())) list.files.push_back(entry.path());
    std::sort(list.files.begin() + static_cast<std::ptrdiff_t>(first), list.files.end());
    list.labels.resize(list.files.size(), static_cast<std::int64_t>(list.class_names.size()));
    list.class_names.push_back(path.filename().string());
  }
  if (list.files.empty()) fail(ErrorKind::kBadFile, cat("no pictures in ", folder.string()), "expected one sub-folder per class with PNG or JPEG files");
  return list;
}

at::Tensor read_picture(const fs::path& file, std::int64_t size) {
  const at::Tensor picture = read_image(file).mul(255).round().to(at::kByte);
  return size > 0 ? center_crop(picture, size) : picture;
}

namespace {

// All of one shape [channels, height, width]; grey is repeated for three channels.
at::Tensor read_pictures(const std::vector<fs::path>& files, const std::vector<std::int64_t>& shape, std::int64_t size) {
  std::vector<at::Tensor> pictures(files.size());
  parallel_for(static_cast<std::int64_t>(files.size()), [&](std::int64_t i) {
    const fs::path& file = files[static_cast<std::size_t>(i)];
    at::Tensor picture = read_picture(file, size);
    if (picture.size(0) == 1 && shape[0] == 3) picture = picture.expand({3, -1, -1});
    if (picture.sizes() != at::IntArrayRef(shape)) {
      fail(ErrorKind::kBadFile, cat(file.string(), ": the picture is ", shape_text(picture.sizes()), ", others are ", shape_text(shape)), "give a size (data.size, --size) to crop and resize all of them");
    }
    pictures[static_cast<std::size_t>(i)] = picture;
  });
  return at::stack(pictures);
}

ImageDataset read_folder(const DatasetConfig& config, const std::string& split) {
  PictureList list = list_pictures(config, split);
  ImageDataset data;
  data.class_names = std::move(list.class_names);
  data.labels = at::tensor(list.labels, at::kLong);
  std::vector<fs::path>& files = list.files;
  std::vector<std::int64_t> shape{1};
  for (std::size_t i = 0; i < std::min<std::size_t>(files.size(), 64) && shape[0] == 1; ++i) shape = read_picture(files[i], config.size).sizes().vec();
  if (static_cast<double>(files.size()) * static_cast<double>(shape[0] * shape[1] * shape[2]) <= config.memory) data.images = read_pictures(files, shape, config.size);
  else data.disk = {std::move(files), shape, config.size};
  return data;
}

void crop_all(ImageDataset& data, std::int64_t size) {
  if (size <= 0 || (data.images.size(2) == size && data.images.size(3) == size)) return;
  at::Tensor cropped = at::empty({data.size(), data.images.size(1), size, size}, at::kByte);
  parallel_for(data.size(), [&](std::int64_t i) { cropped[i].copy_(center_crop(data.images[i], size)); });
  data.images = cropped;
}

}  // namespace

std::int64_t ImageDataset::size() const { return labels.size(0); }

std::vector<std::int64_t> ImageDataset::shape() const { return disk.files.empty() ? (latents() ? mean : images).sizes().slice(1).vec() : disk.shape; }

at::Tensor ImageDataset::states(const at::Tensor& indices, const std::function<at::Tensor()>& noise) const {
  if (!latents()) return batch(indices) * 2 - 1;
  const at::Tensor center = mean.index_select(0, indices);
  return deviation.defined() ? center + deviation.index_select(0, indices) * noise() : center;
}

namespace {

std::uint64_t bytes_hash(const at::Tensor& x) {
  const at::Tensor whole = x.contiguous();
  return fnv1a({static_cast<const char*>(whole.data_ptr()), whole.nbytes()});
}

std::string checksum(const at::Tensor& mean, const at::Tensor& logvar, const at::Tensor& labels) {
  return cat(bytes_hash(mean), "-", logvar.defined() ? bytes_hash(logvar) : 0, "-", bytes_hash(labels));
}

struct ReadLatents {
  LatentFile latents;
  bool intact = false;
};

ReadLatents read_latent_file(const fs::path& file) {
  const TensorFile t = read_safetensors(file);
  const auto text = [&](const char* key) { const auto found = t.metadata.find(key); return found == t.metadata.end() ? std::string() : found->second; };
  if (!t.tensors.contains("mean") || !t.tensors.contains("labels") || text("latents.source").empty()) fail(ErrorKind::kBadFile, cat(file.string(), ": no encoded pictures"), "make them with `tiltflow encode`");
  ReadLatents out;
  LatentFile& l = out.latents;
  l.mean = t.tensors.at("mean"), l.labels = t.tensors.at("labels");
  if (t.tensors.contains("logvar")) l.logvar = t.tensors.at("logvar");
  l.scale = std::atof(text("latents.scale").c_str()), l.shift = std::atof(text("latents.shift").c_str()), l.source = text("latents.source");
  const bool fits = l.mean.dim() == 4 && l.mean.scalar_type() == at::kFloat && l.labels.dim() == 1 && l.labels.scalar_type() == at::kLong && l.labels.size(0) == l.mean.size(0) && l.mean.size(0) > 0 &&
                    (!l.logvar.defined() || (l.logvar.sizes() == l.mean.sizes() && l.logvar.scalar_type() == at::kFloat)) && l.scale > 0 && l.labels.min().item<std::int64_t>() >= 0;
  if (!fits) fail(ErrorKind::kBadFile, cat(file.string(), ": the encoded pictures and labels do not fit each other"));
  out.intact = text("latents.checksum") == checksum(l.mean, l.logvar, l.labels);
  return out;
}

}  // namespace

std::string fingerprint(const ImageDataset& data) {
  std::uint64_t pictures = 0;
  if (data.disk.files.empty()) pictures = bytes_hash(data.images);
  for (const fs::path& file : data.disk.files) pictures = pictures * 0x100000001b3ULL ^ fnv1a(read_file(file));
  return cat(data.size(), " x ", shape_text(data.shape()), " ", pictures, "-", bytes_hash(data.labels));
}

void write_latents(const fs::path& file, const LatentFile& l) {
  ParameterSet tensors;
  tensors.add("mean", l.mean), tensors.add("labels", l.labels);
  if (l.logvar.defined()) tensors.add("logvar", l.logvar);
  write_safetensors(file, tensors, {{"latents.source", l.source}, {"latents.scale", compact(l.scale, 12)}, {"latents.shift", compact(l.shift, 12)}, {"latents.checksum", checksum(l.mean, l.logvar, l.labels)}});
}

std::string latents_source(const fs::path& file) {
  if (!fs::exists(file)) return "";
  try {
    const ReadLatents found = read_latent_file(file);
    return found.intact ? found.latents.source : "";
  } catch (const Error&) {
    return "";
  }
}

ImageDataset read_latents(const fs::path& file) {
  const auto [l, intact] = read_latent_file(file);
  if (!intact) fail(ErrorKind::kBadFile, cat(file.string(), ": the encoded pictures fail their checksum"), "encode them again");
  ImageDataset data;
  data.mean = (l.mean - l.shift) * l.scale;
  if (l.logvar.defined()) data.deviation = (l.logvar * 0.5).exp() * l.scale;
  data.labels = l.labels;
  for (std::int64_t i = 0; i <= l.labels.max().item<std::int64_t>(); ++i) data.class_names.push_back(std::to_string(i));
  return data;
}

at::Tensor ImageDataset::pictures(const at::Tensor& indices) const {
  if (disk.files.empty()) return images.index_select(0, indices);
  std::vector<fs::path> chosen;
  for (std::int64_t i = 0; i < indices.size(0); ++i) chosen.push_back(disk.files[static_cast<std::size_t>(indices[i].item<std::int64_t>())]);
  return read_pictures(chosen, disk.shape, disk.crop);
}

at::Tensor ImageDataset::batch(const at::Tensor& indices) const { return pictures(indices).to(at::kFloat).div(255); }

bool has_test_split(const DatasetConfig& config) {
  if (config.format == "folder") return split_folder(config.path, "test").split;
  return config.format == "idx" || config.format == "cifar";  // files of their own, whose reader says when they are missing
}

ImageDataset read_dataset(const DatasetConfig& config, const std::string& split) {
  const std::string& format = config.format;
  if (format == "folder") return read_folder(config, split);
  if (format == "latents") {
    if (config.size > 0) fail(ErrorKind::kConfig, "latents cannot be cropped to a size", "give the size when encoding: tiltflow encode --size");
    return read_latents(config.path);
  }
  if (format != "idx" && format != "cifar") fail(ErrorKind::kConfig, cat("data.format '", format, "' is unknown", did_you_mean(format, {"idx", "cifar", "folder", "latents"})), "use idx, cifar, folder or latents");
  ImageDataset data = format == "idx" ? read_idx_pair(config.path, split) : read_cifar(config.path, split);
  crop_all(data, config.size);
  return data;
}

}  // namespace tiltflow
