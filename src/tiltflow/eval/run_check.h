// The tilted-law check of a finished run directory.
#pragma once

#include <filesystem>

#include "tiltflow/eval/tilted_check.h"

namespace tiltflow {

// Rebuilds base, tuned model, reward and samplers from DIR/config.toml and DIR/model.safetensors, compares them as [check]
// says, writes DIR/check.json and DIR/report.html. Throws kBadFile for an unfinished run.
TiltedCheck check_run(const std::filesystem::path& run);

}  // namespace tiltflow
