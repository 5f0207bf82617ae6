// A small one-step generator and a quick configuration of its training.
#pragma once

#include "tests/support.h"
#include "tiltflow/train/onestep.h"

namespace tiltflow::test {

inline const RandomStreams kOneStepStreams(5);

// G(z) = tanh(W z) with 16 pixels.
inline std::shared_ptr<const Generator> small_generator(double gain = 0.4) {
  ParameterSet p;
  p.add("0.weight", kOneStepStreams.normal(Purpose::kInit, 0, 0, 0, 16, {8}) * gain);
  p.add("0.bias", at::zeros({16}));
  return make_mlp_generator(p, {});
}

inline OneStepConfig quick_onestep() {
  OneStepConfig c;
  c.sft.batch = 32;
  c.sft.micro_batch = 16;
  c.sft.evaluate_every = 10;
  c.train.steps = 60;
  c.train.optimizer.learning_rate = 1e-2;
  c.train.optimizer.gradient_clip = 0;
  c.train.checkpoint_every = 20;
  return c;
}

}  // namespace tiltflow::test
