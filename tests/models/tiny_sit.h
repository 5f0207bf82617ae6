// SiT configurations that cost nothing.
#pragma once

#include "tests/support.h"
#include "tiltflow/models/sit/sit.h"

namespace tiltflow::test {

inline SitConfig tiny_sit_config() {
  SitConfig c;
  c.input_size = 4;
  c.patch_size = 2;
  c.in_channels = 1;
  c.hidden_size = 24;
  c.depth = 1;
  c.num_heads = 2;
  c.num_classes = 3;
  return c;
}

inline SitConfig tiny_parity_config() {
  SitConfig c;
  c.input_size = 8;
  c.patch_size = 2;
  c.in_channels = 1;
  c.hidden_size = 16;
  c.depth = 2;
  c.num_heads = 2;
  c.num_classes = 3;
  c.learn_sigma = false;
  return c;
}

}  // namespace tiltflow::test
