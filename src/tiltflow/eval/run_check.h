// A finished run directory: loading it, and its tilted-law check.
#pragma once

#include <filesystem>

#include "tiltflow/eval/tilted_check.h"
#include "tiltflow/train/finetuning.h"

namespace tiltflow {

struct FinishedRun {
  FinetuneSetup setup;  // DIR/config.toml
  FlowModel tuned;      // DIR/model.safetensors
};
// Throws kBadFile for an unfinished run.
FinishedRun load_finished_run(const std::filesystem::path& run);

// Rebuilds base, tuned model, reward and samplers from DIR/config.toml and DIR/model.safetensors, compares them as [check]
// says, writes DIR/check.json and DIR/report.html. Throws kBadFile for an unfinished run.
TiltedCheck check_run(const std::filesystem::path& run);

}  // namespace tiltflow
