// What a run would stumble over after hours, found before it begins: one forward and backward of
// everything on two samples, the files that are read at the end, room in the folder. Nothing is
// written.
#pragma once

#include <filesystem>

#include "tiltflow/train/finetuning.h"

namespace tiltflow {

// Model and policy (values, gradients of what is trained, products with the base's Jacobian where
// the method needs them), decoder and reward (of two samples as of one, gradients where they are
// needed), the judge of [check], stored pairs. Throws what it finds together. Cost: a few network
// calls on two samples; K more when the reward's gradient is zero there.
void check_start(const FinetuneSetup& setup);

// The folder of a run can be made (no file is in the way, its parent may be written), and `bytes`
// fit on its disk. Throws kConfig. Whether a run may start in it: require_startable of train/run.
void check_output_folder(const std::filesystem::path& folder, double bytes);
// Bytes that a fine-tuning run leaves at most: checkpoints with one in the making, model and
// adapter.
double output_bytes(const FinetuneSetup& setup);

}  // namespace tiltflow
