// SiT on disk, every weight drawn: fine-tuned in well under a second.
#pragma once

#include <filesystem>

#include "tiltflow/models/model_file.h"
#include "tiltflow/models/sit/sit.h"

namespace tiltflow::test {

inline void save_drawn_sit(const std::filesystem::path& file, const SitConfig& c) {
  ParameterSet weights;
  std::uint32_t key = 0;
  for (const auto& [name, tensor] : init_sit(c, RandomStreams(1))) {
    weights.add(name, name == "pos_embed" ? tensor
                                          : RandomStreams(9).normal(Purpose::kInit, 3, ++key, 0, 1,
                                                                    tensor.sizes())[0] *
                                                0.1);
  }
  save_velocity_model(file, *make_sit(c, weights), weights);
}

// 8 x 8 pixels and three classes.
inline void save_small_sit(const std::filesystem::path& file) {
  SitConfig c;
  c.input_size = 8;
  c.patch_size = 4;
  c.in_channels = 1;
  c.hidden_size = 16;
  c.depth = 1;
  c.num_heads = 2;
  c.num_classes = 3;
  c.learn_sigma = false;
  save_drawn_sit(file, c);
}

// 28 x 28 pixels and ten classes, as the shipped model of digits.
inline void save_digit_sit(const std::filesystem::path& file) {
  SitConfig c;
  c.input_size = 28;
  c.patch_size = 7;
  c.in_channels = 1;
  c.hidden_size = 16;
  c.depth = 1;
  c.num_heads = 2;
  c.num_classes = 10;
  c.learn_sigma = false;
  save_drawn_sit(file, c);
}

}  // namespace tiltflow::test
