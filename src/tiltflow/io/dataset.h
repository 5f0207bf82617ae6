// Labelled images in memory: idx files (MNIST), CIFAR-10 binary records, folders of pictures with one sub-folder a class.
#pragma once

#include <ATen/core/Tensor.h>

#include <filesystem>
#include <functional>
#include <string>
#include <vector>

namespace tiltflow {

// Of a folder too large for memory: read anew for every batch.
struct PicturesOnDisk {
  std::vector<std::filesystem::path> files;
  std::vector<std::int64_t> shape;  // [C, H, W]
  std::int64_t crop = 0;            // DatasetConfig::size
};

struct ImageDataset {
  at::Tensor images;   // [N, C, H, W] uint8; undefined for latents and for pictures that stay on disk
  PicturesOnDisk disk;
  at::Tensor mean, deviation;  // [N, c, h, w] fp32, of the encoder's posterior in scaled latents; deviation may be undefined
  at::Tensor labels;  // [N] int64
  std::vector<std::string> class_names;
  std::int64_t size() const;
  std::int64_t classes() const { return static_cast<std::int64_t>(class_names.size()); }
  bool latents() const { return mean.defined(); }
  at::Tensor pictures(const at::Tensor& indices) const;  // [n, C, H, W] uint8; not for latents
  at::Tensor batch(const at::Tensor& indices) const;     // [n, C, H, W] fp32 in [0, 1]; not for latents
  std::vector<std::int64_t> shape() const;            // of one item
  // What a flow is trained on: images in [-1, 1], or latents drawn from the posterior with `noise`, shaped like the batch.
  at::Tensor states(const at::Tensor& indices, const std::function<at::Tensor()>& noise) const;
};

ImageDataset read_latents(const std::filesystem::path& file);
// What identifies the content of a data set: the same pictures (files, when they stay on disk) and labels give the same text.
std::string fingerprint(const ImageDataset& data);

// Encoded pictures: raw moments of the encoder, with what they were made of. Atomic.
struct LatentFile {
  at::Tensor mean, logvar, labels;  // logvar may be undefined
  double scale = 1, shift = 0;      // of the autoencoder
  std::string source;               // fingerprint of the pictures and of the autoencoder
};
void write_latents(const std::filesystem::path& file, const LatentFile& latents);
// The `source` entry of such a file; "" when it is none or its tensors do not have the checksum it was written with.
std::string latents_source(const std::filesystem::path& file);

struct DatasetConfig {
  std::string format = "idx", path;
  std::int64_t size = 0;  // > 0: the central square of every picture at this size (io/resize); 0: as they are
  double memory = 4e9;    // bytes; pictures of a folder that need more stay on disk
};
// The pictures of a folder with one sub-folder a class, in a fixed order; nothing is opened yet. Throws kBadFile.
struct PictureList {
  std::vector<std::filesystem::path> files;
  std::vector<std::int64_t> labels;
  std::vector<std::string> class_names;
};
PictureList list_pictures(const DatasetConfig& config, const std::string& split);
// Bytes of pictures as a model sees them, in [-1, 1], and back (rounded, clamped).
at::Tensor state_of_bytes(const at::Tensor& bytes);
at::Tensor bytes_of_state(const at::Tensor& state);
at::Tensor read_picture(const std::filesystem::path& file, std::int64_t size);  // [C, H, W] uint8; size > 0: its central square. Throws kBadFile

// `format`: "idx" (folder with {train,t10k}-{images-idx3,labels-idx1}-ubyte[.gz]), "cifar" (folder with *train*.bin[.gz]
// or data_batch_*.bin and *test*.bin[.gz]), "folder" (path/{split}/class/ or path/class/ with .png, .jpg, .jpeg; grey pictures become RGB when
// others are; all of one size unless `size` is given), "latents" (a file of write_latents).
// `split`: "train" or "test"; a folder that is not divided gives all its pictures for either (see split_folder). Throws kBadFile.
ImageDataset read_dataset(const DatasetConfig& config, const std::string& split);
// Whether the test pictures are others than the training pictures.
bool has_test_split(const DatasetConfig& config);

}  // namespace tiltflow
