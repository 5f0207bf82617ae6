// Labelled images: idx files (MNIST), CIFAR-10 binary records, folders of pictures with one
// sub-folder a class, NumPy arrays, and latents of `tiltflow encode`.
#pragma once

#include <ATen/core/Tensor.h>

#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "tiltflow/io/picture.h"
#include "tiltflow/io/picture_folder.h"

namespace tiltflow {

// How a picture becomes an item of a data set.
struct PictureOptions {
  std::int64_t size = 0;  // > 0: the central square at this size (io/resize); 0: as it is
  AlphaRule alpha = AlphaRule::kDrop;
  std::int64_t channels = 0;  // 1 grey, 3 RGB, 0: as it is
};
// [C, H, W] uint8: alpha, channels, crop, in this order. `name` stands in errors. Throws kBadFile.
at::Tensor prepared(const Picture& picture, const PictureOptions& options, const std::string& name);
at::Tensor read_picture(const std::filesystem::path& file, const PictureOptions& options);

// Of a folder too large for memory: read anew for every batch.
struct PicturesOnDisk {
  std::vector<std::filesystem::path> files;
  std::vector<std::int64_t> shape;  // [C, H, W]
  PictureOptions options;
};

struct ImageDataset {
  at::Tensor
      images;  // [N, C, H, W] uint8; undefined for latents and for pictures that stay on disk
  PicturesOnDisk disk;
  at::Tensor mean, deviation;  // [N, c, h, w] fp32, of the encoder's posterior in scaled latents;
                               // deviation may be undefined
  at::Tensor labels;           // [N] int64
  std::vector<std::string> class_names;
  std::vector<std::string> skipped;  // "FILE: why", of DatasetConfig::skip_bad
  std::vector<std::string>
      notes;  // sentences: what was skipped, left aside or converted; read_dataset has said them

  std::int64_t size() const;
  std::int64_t classes() const { return static_cast<std::int64_t>(class_names.size()); }
  bool latents() const { return mean.defined(); }
  at::Tensor pictures(const at::Tensor& indices) const;  // [n, C, H, W] uint8; not for latents
  at::Tensor batch(
      const at::Tensor& indices) const;     // [n, C, H, W] fp32 in [0, 1]; not for latents
  std::vector<std::int64_t> shape() const;  // of one item
  // What a flow is trained on: images in [-1, 1], or latents drawn from the posterior with `noise`,
  // shaped like the batch.
  at::Tensor states(const at::Tensor& indices, const std::function<at::Tensor()>& noise) const;
};

// What identifies the content of a data set: the same pictures (files, when they stay on disk) and
// labels give the same text.
std::string fingerprint(const ImageDataset& data);
std::uint64_t bytes_hash(const at::Tensor& x);
// One more than the largest label. Throws kBadFile for negative labels and for more than a million
// classes.
std::int64_t class_count(const at::Tensor& labels, const std::string& where);

struct DatasetConfig {
  std::string format = "idx";
  std::string path;
  std::int64_t size =
      0;  // > 0: the central square of every picture at this size (io/resize); 0: as they are
  double memory = 4e9;         // bytes; pictures of a folder that need more stay on disk
  std::string alpha = "drop";  // folder: what becomes of transparent pixels (AlphaRule)
  std::string channels =
      "auto";  // "grey", "rgb": what all pictures become; auto: RGB as soon as one is coloured
  bool skip_bad = false;  // folder: leave out what cannot be read; it is counted and named
};
PictureOptions picture_options(const DatasetConfig& config);  // throws kConfig

// The pictures of a folder with one sub-folder a class, of path/{split} when that exists; nothing
// is opened yet. Throws kBadFile.
PictureList list_pictures(const DatasetConfig& config, const std::string& split);

// Bytes of pictures as a model sees them, in [-1, 1], and back (rounded, clamped).
at::Tensor state_of_bytes(const at::Tensor& bytes);
at::Tensor bytes_of_state(const at::Tensor& state);

const std::vector<std::string>& data_formats();  // idx, cifar, folder, numpy, latents

// `format`: "idx", "cifar" (see io/record_files), "folder" (io/picture_folder: path/{split}/class/
// or path/class/), "numpy" (a file .npz or .npy of images), "latents" (a file of write_latents; for
// both the split does not matter). `split`: "train" or "test"; a folder that is not divided gives
// all its pictures for either (see split_folder). What was skipped or converted is logged as
// warnings. Throws kBadFile.
ImageDataset read_dataset(const DatasetConfig& config, const std::string& split);
// Whether the test pictures are others than the training pictures.
bool has_test_split(const DatasetConfig& config);

}  // namespace tiltflow
