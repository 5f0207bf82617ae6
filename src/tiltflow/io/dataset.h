// Labelled images in memory: idx files (MNIST), CIFAR-10 binary records, folders of pictures with one sub-folder a class.
#pragma once

#include <ATen/core/Tensor.h>

#include <filesystem>
#include <functional>
#include <string>
#include <vector>

namespace tiltflow {

struct ImageDataset {
  at::Tensor images;  // [N, C, H, W] uint8; undefined for latents
  at::Tensor mean, deviation;  // [N, c, h, w] fp32, of the encoder's posterior in scaled latents; deviation may be undefined
  at::Tensor labels;  // [N] int64
  std::vector<std::string> class_names;
  std::int64_t size() const;
  std::int64_t classes() const { return static_cast<std::int64_t>(class_names.size()); }
  at::Tensor batch(const at::Tensor& indices) const;  // [n, C, H, W] fp32 in [0, 1]; not for latents
  std::vector<std::int64_t> shape() const;            // of one item
  // What a flow is trained on: images in [-1, 1], or latents drawn from the posterior with `noise`, shaped like the batch.
  at::Tensor states(const at::Tensor& indices, const std::function<at::Tensor()>& noise) const;
};

// `format`: "idx" (folder with {train,t10k}-{images-idx3,labels-idx1}-ubyte[.gz]), "cifar" (folder with *train*.bin[.gz]
// or data_batch_*.bin and *test*.bin[.gz]), "folder" (path/{split}/class/*.png or path/class/*.png; all the same size), "latents" (a file of write_latents).
// `split`: "train" or "test". Throws kBadFile.
ImageDataset read_latents(const std::filesystem::path& file);
// What identifies the content of a data set: the same pictures and labels give the same text.
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

ImageDataset read_dataset(const std::string& format, const std::filesystem::path& path, const std::string& split);

}  // namespace tiltflow
