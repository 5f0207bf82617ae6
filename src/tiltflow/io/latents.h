// Files of encoded pictures: raw moments of the encoder, with what they were made of.
#pragma once

#include <ATen/core/Tensor.h>

#include <filesystem>
#include <string>

#include "tiltflow/io/dataset.h"

namespace tiltflow {

struct LatentFile {
  at::Tensor mean, logvar, labels;  // [N, c, h, w] fp32 twice, [N] int64; logvar may be undefined
  double scale = 1;
  double shift = 0;    // of the autoencoder
  std::string source;  // fingerprint of the pictures and of the autoencoder
};
void write_latents(const std::filesystem::path& file, const LatentFile& latents);  // atomic
// The `source` entry of such a file; "" when it is none or its tensors do not have the checksum it
// was written with.
std::string latents_source(const std::filesystem::path& file);
// Throws kBadFile for tensors that do not fit each other, are not finite or fail the checksum.
ImageDataset read_latents(const std::filesystem::path& file);

}  // namespace tiltflow
