// What --dry-run and `config check` do: try what a run will need, then say in a few lines what it
// would be.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "tiltflow/config/override.h"
#include "tiltflow/config/resume.h"
#include "tiltflow/eval/method_comparison.h"
#include "tiltflow/train/finetuning.h"
#include "tiltflow/train/onestep.h"
#include "tiltflow/train/pretraining_run.h"

namespace tiltflow::app {

// A pre-training configuration says its kind, one for one-step generators its generator, a
// comparison its config; any other is for fine-tuning.
enum class RecipeKind { kFinetuning, kPretraining, kOneStep, kComparison };
RecipeKind kind_of_recipe(const std::string& file, const std::vector<Override>& changes);

// Each checks everything first and throws all problems together. `out`: the run's folder, which
// must be free to be made unless its run is resumed; "" when it is not known.
void print_plan(const FinetuneSetup& setup, const std::filesystem::path& out,
                const RunStart& start);
void print_plan(PretrainSetup setup, const std::filesystem::path& out, const RunStart& start);
void print_plan(const OneStepConfig& config);
void print_plan(const std::vector<ComparedRun>& runs);

}  // namespace tiltflow::app
