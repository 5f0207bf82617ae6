// `tiltflow compare`: fine-tuning methods on one task at equal cost, over seeds and reward scales,
// on one page. Every run is a run directory of its own; what is compared is measured on the
// finished models with the same noise for all.
#pragma once

#include <filesystem>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "tiltflow/eval/budget.h"
#include "tiltflow/tensor/statistics.h"

namespace tiltflow {

struct ComparedMethod {
  std::string name;              // shown, and of its folders
  std::vector<std::string> set;  // configuration keys, e.g. method.name=draft
};
void bind(Fields& f, ComparedMethod& c);

struct ComparisonRecipe {
  std::string title;
  std::filesystem::path folder;  // of the recipe itself: what the paths in `set` are relative to
  std::string config;            // of the fine-tuning that all runs share
  std::vector<std::string> set;  // configuration keys of all runs
  std::vector<std::int64_t> seeds{0, 1, 2};
  std::vector<double> scales{1};  // factors on the scales of all rewards
  double evaluations = 0;
  double seconds = 0;               // budgets of one run; both given: two sets of runs
  std::int64_t samples = 1000;      // for measuring, of each model
  std::string features = "pixels";  // network of diversity and Frechet distance: pixels, a
                                    // classifier file, a CLIP; vectors are their own features
  std::string reference;  // feature statistics of real data; "" = those of the base model's samples
  double reach =
      0.8;  // time-to-reward: this share of the way from the base's reward to the best method's
  std::vector<RewardTerm> held_out;  // measured beside, optimised by none
  std::vector<ComparedMethod> run;
};
void bind(Fields& f, ComparisonRecipe& c);

struct CurvePoint {
  double evaluations, seconds, reward;
};

// One finished model, or the base.
struct ModelFigures {
  std::vector<std::pair<std::string, Estimate>>
      figures;  // in the order of the table: reward, held-out ones, control cost, gap, diversity,
                // Frechet distance
  std::vector<CurvePoint>
      curve;  // rewards of the evaluations on the way, in units of the task's own scale
  double steps = 0;
  double evaluations = 0;
  double seconds = 0;                          // of the run
  double find(const std::string& name) const;  // NaN when it is not there
};

struct ComparedRun {
  std::string method, folder;  // folder: below OUT
  double scale = 1;
  std::int64_t seed = 0;
  bool timed = false;  // the budget is in seconds
  std::string status;  // "done", "there already", "not begun" or the error
  ModelFigures figures;
};

struct Comparison {
  ComparisonRecipe recipe;
  ModelFigures base;
  std::vector<ComparedRun> runs;
};

// Finished runs are kept, unfinished ones continue, failed ones are recorded; kStopped ends it.
// After every run OUT/compare.json, compare.md and compare.html are written. `overrides` are of the
// recipe; `set` are of all runs and come after the recipe's. Throws kConfig for recipes that say
// nothing to run.
Comparison compare_methods(const std::filesystem::path& recipe,
                           const std::vector<Override>& overrides, const std::vector<Override>& set,
                           const std::filesystem::path& out,
                           const std::function<void(std::size_t index, std::size_t count,
                                                    const ComparedRun&)>& begins = {});
// What would be run, in order. The second also reads the configurations of all methods and loads
// what the task and the held-out rewards name.
std::vector<ComparedRun> planned_comparison(const ComparisonRecipe& recipe);
std::vector<ComparedRun> check_comparison(const std::filesystem::path& recipe,
                                          const std::vector<Override>& overrides,
                                          const std::vector<Override>& set);

}  // namespace tiltflow
