// The start of a pre-training run tried on two images: data and model fit each other, loss and
// gradients are finite. Nothing is written.
#pragma once

#include "tiltflow/train/pretraining_run.h"

namespace tiltflow {

// Takes the setup, whose model it trains on nothing. Throws kConfig, kNonFinite.
void check_start(PretrainSetup setup);

}  // namespace tiltflow
