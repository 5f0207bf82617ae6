// Labelled images in memory: idx files (MNIST), CIFAR-10 binary records, folders of pictures with one sub-folder a class.
#pragma once

#include <ATen/core/Tensor.h>

#include <filesystem>
#include <string>
#include <vector>

namespace tiltflow {

struct ImageDataset {
  at::Tensor images;  // [N, C, H, W] uint8
  at::Tensor labels;  // [N] int64
  std::vector<std::string> class_names;
  std::int64_t size() const;
  std::int64_t classes() const { return static_cast<std::int64_t>(class_names.size()); }
  at::Tensor batch(const at::Tensor& indices) const;  // [n, C, H, W] fp32 in [0, 1]
};

// `format`: "idx" (folder with {train,t10k}-{images-idx3,labels-idx1}-ubyte[.gz]), "cifar" (folder with *train*.bin[.gz]
// or data_batch_*.bin and *test*.bin[.gz]), "folder" (path/{split}/class/*.png or path/class/*.png; all the same size).
// `split`: "train" or "test". Throws kBadFile.
ImageDataset read_dataset(const std::string& format, const std::filesystem::path& path, const std::string& split);

}  // namespace tiltflow
