// Many fine-tuning runs over values of configuration keys, each in a folder of its own; one table
// and one page at the end.
#pragma once

#include <filesystem>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "tiltflow/config/override.h"

namespace tiltflow {

struct SweptKey {
  std::string key;                  // e.g. "reward[0].scale"
  std::vector<std::string> values;  // in TOML grammar
};
// "KEY=V1,V2,...": commas inside brackets or quotes do not separate. Throws kUsage.
SweptKey parse_swept_key(const std::string& text);

struct SweepOptions {
  std::filesystem::path config, out;
  std::vector<SweptKey> keys;
  bool together = false;      // i-th values of all keys instead of every combination
  std::vector<Override> set;  // overrides for every run
  bool check = true;          // the tilted-law check after every run
  double budget = 0;  // > 0: network evaluations of a run; train.steps becomes what they pay for,
                      // so that methods are compared fairly
};

struct SweptRun {
  std::string name;                                         // of its folder
  std::vector<std::pair<std::string, std::string>> values;  // key, value
  std::int64_t steps = 0;                                   // with a budget: of training, and
  double evaluations = 0;                                   // network evaluations of one
  std::string status;                                       // "done", "there already", or the error
};

// Names of the runs in order. Throws kUsage for unequal lengths with `together` and for more than
// 1,000 runs.
std::vector<SweptRun> planned_runs(const SweepOptions& options);

// The same after every run's configuration has been read, set up and tried on two samples. Throws
// all problems together, with the runs' names.
std::vector<SweptRun> check_sweep(const SweepOptions& options);

// Runs that are finished are kept, unfinished ones continue, failed ones are recorded and the next
// begins; kStopped ends the sweep. Writes OUT/sweep.json, sweep.md and sweep.html after every run.
// Returns the runs with their status.
std::vector<SweptRun> sweep(
    const SweepOptions& options,
    const std::function<void(std::size_t index, const SweptRun&)>& begins = {});

}  // namespace tiltflow
