// A reward from outside: a TorchScript module saved with torch.jit.save, called as forward(images)
// or forward(images, labels).
#pragma once

#include "tiltflow/reward/reward.h"

namespace tiltflow {

// TorchScript is a program: it runs with the rights of the user. Needs term.file. Throws kBadFile
// when it cannot be read.
std::shared_ptr<const Reward> make_torchscript(const RewardTerm& term);

}  // namespace tiltflow
