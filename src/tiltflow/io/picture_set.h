// The pictures of a list of files as one data set: every file is read and checked before anything
// is done with any of them.
#pragma once

#include "tiltflow/io/dataset.h"
#include "tiltflow/io/picture_folder.h"

namespace tiltflow {

// All pictures of one shape: in memory, or on disk when they need more than `memory` bytes. All
// files that cannot be read are named together, or left out and counted with `skip_bad`. Pictures
// of different sizes, when no size is asked for, are an error. `name` (a folder) stands in errors
// and notes. Throws kBadFile. Cost: each file is decoded once; another time per batch for sets on
// disk.
ImageDataset read_picture_set(PictureList list, const DatasetConfig& config,
                              const std::string& name);

// [n, C, H, W] uint8 of some files of a set on disk.
at::Tensor read_pictures(const PicturesOnDisk& disk,
                         const std::vector<std::filesystem::path>& files);

}  // namespace tiltflow
