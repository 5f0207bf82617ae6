// Pictures of two classes and a SiT that learns them in no time.
#pragma once

#include "tests/support.h"
#include "tiltflow/io/dataset.h"
#include "tiltflow/models/sit/sit.h"
#include "tiltflow/train/pretraining_run.h"

namespace tiltflow::test {

inline const RandomStreams kMonitorStreams(4);

inline SitConfig small_pretraining_sit() {
  SitConfig c;
  c.input_size = 8;
  c.patch_size = 4;
  c.in_channels = 1;
  c.hidden_size = 16;
  c.depth = 1;
  c.num_heads = 2;
  c.num_classes = 2;
  c.learn_sigma = false;
  return c;
}

// Random pictures of two classes; class 1 has every `rare`-th.
inline ImageDataset two_class_pictures(std::int64_t n, std::int64_t rare = 2) {
  ImageDataset data;
  data.images =
      kMonitorStreams.uniform(Purpose::kExact, static_cast<std::uint32_t>(n), 0, n, {1, 8, 8})
          .mul(255)
          .to(at::kByte);
  data.labels = at::arange(n).remainder(rare).eq(0).to(at::kLong);
  data.class_names = {"a", "b"};
  return data;
}

inline PretrainConfig small_pretraining() {
  PretrainConfig c;
  c.batch = 8;
  c.micro_batch = 4;
  c.train.steps = 4;
  c.train.average_decay = 0.9;
  c.evaluation.every = 2;
  c.evaluation.samples = 20;
  c.evaluation.sampler_steps = 2;
  return c;
}

}  // namespace tiltflow::test
