// Base against tuned from the same noise and labels: rewards, diversity, Frechet distance,
// precision and recall, control cost; under the stochastic and the deterministic sampler, without
// and with guidance.
#pragma once

#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "tiltflow/config/override.h"
#include "tiltflow/eval/quality.h"
#include "tiltflow/io/dataset.h"

namespace tiltflow {

struct ComparisonOptions {
  std::int64_t n = 500;
  std::int64_t seeds = 2;  // samples per seed; seeds are those of the run + 1, + 2, ...
  std::optional<double>
      guidance;  // rows with this scale beside those of the run's own guidance (needs labels)
  std::vector<Override> changes;    // of the runs' configurations
  std::string features = "pixels";  // see make_feature_network
  DatasetConfig data;  // real images, when its path is given: Frechet distance, precision, recall
  std::string reference;       // their feature statistics (read_moments): Frechet distance alone
  std::string make_reference;  // write the statistics of `data` here
  std::function<void(std::int64_t done, std::int64_t total)> progress;
};

struct ComparedModel {
  std::string run, model, sampler;
  double guidance = 1;
  std::vector<std::pair<std::string, std::optional<Estimate>>> figures;  // nullopt: does not apply
};

struct ModelComparison {
  std::vector<std::string> runs;
  std::string features;
  std::int64_t samples = 0;
  std::vector<ComparedModel> rows;
};

// One or more runs; the base's rows stand once for runs whose base, sampler and reward give the
// same figures. Throws kBadFile for an unfinished run.
ModelComparison compare_models(const std::vector<std::filesystem::path>& runs,
                               const ComparisonOptions& options);

std::string table_text(const ModelComparison& comparison);
std::string to_csv(const ModelComparison& comparison);
std::string to_html(const ModelComparison& comparison);
nlohmann::ordered_json to_json(const ModelComparison& comparison);

}  // namespace tiltflow
