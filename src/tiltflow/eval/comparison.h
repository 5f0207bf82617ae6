// Base against tuned from the same noise and labels: rewards, diversity, Frechet distance, precision and recall, control
// cost; under the stochastic and the deterministic sampler, without and with guidance.
#pragma once

#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "tiltflow/eval/quality.h"

namespace tiltflow {

struct ComparisonOptions {
  std::int64_t n = 500, seeds = 2;  // samples per seed; seeds are those of the run + 1, + 2, ...
  double guidance = 1;              // other than 1: rows with this guidance as well (needs labels)
  std::string features = "pixels";  // see make_feature_network
  std::string data, format = "idx"; // real images: Frechet distance, precision, recall
  std::string reference;            // feature moments instead of data: Frechet distance alone
  std::function<void(std::int64_t done, std::int64_t total)> progress;
};

struct ComparedModel {
  std::string model, sampler;
  double guidance = 1;
  std::vector<std::pair<std::string, std::optional<Estimate>>> figures;  // nullopt: does not apply
};

struct Comparison {
  std::string run, features;
  std::int64_t samples = 0;
  std::vector<ComparedModel> rows;
};

// Throws kBadFile for an unfinished run.
Comparison compare_models(const std::filesystem::path& run, const ComparisonOptions& options);

std::string table_text(const Comparison& comparison);
std::string to_csv(const Comparison& comparison);
std::string to_html(const Comparison& comparison);
nlohmann::ordered_json to_json(const Comparison& comparison);

}  // namespace tiltflow
