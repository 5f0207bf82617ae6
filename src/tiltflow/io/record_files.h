// Data sets in a few files of records: idx (MNIST and its relatives), CIFAR binary, NumPy arrays.
#pragma once

#include "tiltflow/io/dataset.h"

namespace tiltflow {

// {train,t10k}-{images-idx3,labels-idx1}-ubyte[.gz] of a folder. Images are bytes; labels may be of
// any whole type. Throws kBadFile.
ImageDataset read_idx_pair(const std::filesystem::path& folder, const std::string& split);

// All *train*.bin[.gz] or data_batch_*.bin[.gz] (*test* for the test split) of a folder, in the
// order of their names; CIFAR-10 records. Throws kBadFile.
ImageDataset read_cifar(const std::filesystem::path& folder, const std::string& split);

// An .npz of evaluation scripts: arr_0 (or images) [N, H, W, C] or [N, H, W] uint8, labels in arr_1
// (or labels) [N] when there are some; or an .npy of such images. Throws kBadFile.
ImageDataset read_numpy_images(const std::filesystem::path& file);

}  // namespace tiltflow
