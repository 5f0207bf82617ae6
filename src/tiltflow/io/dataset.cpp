#include "tiltflow/io/dataset.h"

#include "tiltflow/base/error.h"
#include "tiltflow/base/file.h"
#include "tiltflow/base/hash.h"
#include "tiltflow/base/log.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/io/latents.h"
#include "tiltflow/io/picture_set.h"
#include "tiltflow/io/record_files.h"
#include "tiltflow/io/resize.h"
#include "tiltflow/io/split_folder.h"
#include "tiltflow/tensor/aten.h"
#include "tiltflow/tensor/parallel.h"
#include "tiltflow/tensor/parameters.h"

namespace tiltflow {

namespace fs = std::filesystem;

at::Tensor state_of_bytes(const at::Tensor& bytes) {
  return bytes.to(at::kFloat).div(255).mul(2).sub(1);
}
at::Tensor bytes_of_state(const at::Tensor& state) {
  return state.add(1).mul(127.5).round().clamp(0, 255).to(at::kByte);
}

namespace {

std::int64_t channel_count(const std::string& name) {
  if (name == "auto") return 0;
  if (name == "grey") return 1;
  if (name == "rgb") return 3;
  fail(ErrorKind::kConfig, cat("channels '", name, "' is unknown"), "use auto, grey or rgb");
}

}  // namespace

PictureOptions picture_options(const DatasetConfig& c) {
  return {c.size, parse_alpha_rule(c.alpha), channel_count(c.channels)};
}

at::Tensor prepared(const Picture& picture, const PictureOptions& options,
                    const std::string& name) {
  at::Tensor bytes = without_alpha(picture, options.alpha, name);
  if (options.channels > 0) bytes = with_channels(bytes, options.channels);
  return options.size > 0 ? center_crop(bytes, options.size, name) : bytes;
}

at::Tensor read_picture(const fs::path& file, const PictureOptions& options) {
  return prepared(read_picture_file(file), options, file.string());
}

PictureList list_pictures(const DatasetConfig& config, const std::string& split) {
  return list_picture_folder(split_folder(config.path, split).folder);
}

std::int64_t ImageDataset::size() const { return labels.size(0); }

std::vector<std::int64_t> ImageDataset::shape() const {
  if (!disk.files.empty()) return disk.shape;
  return (latents() ? mean : images).sizes().slice(1).vec();
}

at::Tensor ImageDataset::states(const at::Tensor& indices,
                                const std::function<at::Tensor()>& noise) const {
  if (!latents()) return batch(indices) * 2 - 1;
  const at::Tensor center = mean.index_select(0, indices);
  return deviation.defined() ? center + deviation.index_select(0, indices) * noise() : center;
}

at::Tensor ImageDataset::pictures(const at::Tensor& indices) const {
  if (disk.files.empty()) return images.index_select(0, indices);
  std::vector<fs::path> chosen;
  for (std::int64_t i = 0; i < indices.size(0); ++i) {
    chosen.push_back(disk.files[static_cast<std::size_t>(indices[i].item<std::int64_t>())]);
  }
  return read_pictures(disk, chosen);
}

at::Tensor ImageDataset::batch(const at::Tensor& indices) const {
  return pictures(indices).to(at::kFloat).div(255);
}

std::uint64_t bytes_hash(const at::Tensor& x) {
  const at::Tensor whole = x.contiguous();
  return fnv1a({static_cast<const char*>(whole.data_ptr()), whole.nbytes()});
}

std::string fingerprint(const ImageDataset& data) {
  std::uint64_t pictures = 0;
  if (data.disk.files.empty()) pictures = bytes_hash(data.images);
  for (const fs::path& file : data.disk.files) {
    pictures = pictures * 0x100000001b3ULL ^ fnv1a(read_file(file));
  }
  return cat(data.size(), " x ", shape_text(data.shape()), " ", pictures, "-",
             bytes_hash(data.labels));
}

std::int64_t class_count(const at::Tensor& labels, const std::string& where) {
  constexpr std::int64_t kMost = 1'000'000;
  if (labels.numel() == 0) return 0;
  const auto least = labels.min().item<std::int64_t>();
  const auto most = labels.max().item<std::int64_t>();
  if (least < 0 || most >= kMost) {
    fail(ErrorKind::kBadFile, cat(where, ": labels reach from ", least, " to ", most,
                                  ", expected 0 and above, below ", kMost));
  }
  return most + 1;
}

namespace {

void crop_all(ImageDataset& data, std::int64_t size, const std::string& name) {
  if (size <= 0 || (data.images.size(2) == size && data.images.size(3) == size)) return;
  at::Tensor cropped = at::empty({data.size(), data.images.size(1), size, size}, at::kByte);
  parallel_for(data.size(),
               [&](std::int64_t i) { cropped[i].copy_(center_crop(data.images[i], size, name)); });
  data.images = cropped;
}

void convert_all(ImageDataset& data, std::int64_t channels) {
  if (channels == 0 || data.images.size(1) == channels) return;
  at::Tensor converted =
      at::empty({data.size(), channels, data.images.size(2), data.images.size(3)}, at::kByte);
  parallel_for(data.size(), [&](std::int64_t i) {
    converted[i].copy_(with_channels(data.images[i], channels));
  });
  data.images = converted;
}

ImageDataset read_folder(const DatasetConfig& config, const std::string& split) {
  const fs::path folder = split_folder(config.path, split).folder;
  return read_picture_set(list_picture_folder(folder), config, folder.string());
}

ImageDataset read_records(const DatasetConfig& config, const std::string& split) {
  if (config.format == "idx") return read_idx_pair(config.path, split);
  if (config.format == "cifar") return read_cifar(config.path, split);
  if (config.format == "numpy") return read_numpy_images(config.path);
  fail(ErrorKind::kConfig,
       cat("data.format '", config.format, "' is unknown",
           did_you_mean(config.format, data_formats())),
       cat("use one of ", join(data_formats(), ", ")));
}

}  // namespace

const std::vector<std::string>& data_formats() {
  static const std::vector<std::string> formats{"idx", "cifar", "folder", "numpy", "latents"};
  return formats;
}

bool has_test_split(const DatasetConfig& config) {
  if (config.format == "folder") return split_folder(config.path, "test").split;
  return config.format == "idx" ||
         config.format == "cifar";  // files of their own, whose reader says when they are missing
}

ImageDataset read_dataset(const DatasetConfig& config, const std::string& split) {
  ImageDataset data;
  if (config.format == "latents") {
    if (config.size > 0) {
      fail(ErrorKind::kConfig, "latents cannot be cropped to a size",
           "give the size when encoding: tiltflow encode --size");
    }
    if (config.channels != "auto") {
      fail(ErrorKind::kConfig, "latents have the channels of their autoencoder",
           "give --channels when encoding: tiltflow encode --channels");
    }
    data = read_latents(config.path);
  } else if (config.format == "folder") {
    data = read_folder(config, split);
  } else {
    data = read_records(config, split);
    convert_all(data, channel_count(config.channels));
    crop_all(data, config.size, config.path);
  }
  for (const std::string& note : data.notes) log_warn(note);
  return data;
}

}  // namespace tiltflow
