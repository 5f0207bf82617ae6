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
// Throws kBadFile when `run` is no run of `finetune`, or one that has written no model yet.
void require_finished_run(const std::filesystem::path& run);
// `changes`: of the run's configuration, for this evaluation. Throws kBadFile for an unfinished
// run.
FinishedRun load_finished_run(const std::filesystem::path& run,
                              const std::vector<Override>& changes = {});
// Whether `changes` leave every number of an evaluation as it is: workers and threads.
bool keep_the_numbers(const std::vector<Override>& changes);
// What `changes` make different from the run's own configuration: "guidance.scale = 1 instead of
// 4", one text a key.
std::vector<std::string> changed_keys(const std::filesystem::path& run,
                                      const std::vector<Override>& changes);

// Rebuilds base, tuned model, reward and samplers from DIR/config.toml and DIR/model.safetensors,
// and compares them as [check] says: the law of the run, its guidance, sampler, labels, decoder and
// precision. Writes DIR/check.json and DIR/report.html, unless `changes` make another evaluation of
// it. Throws kBadFile for an unfinished run.
TiltedCheck check_run(const std::filesystem::path& run, const std::vector<Override>& changes = {});

}  // namespace tiltflow
