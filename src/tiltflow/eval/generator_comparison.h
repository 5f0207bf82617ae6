// One-step generators side by side: reconstruction of targets from assigned noise, of held-out
// targets after assigning anew, class accuracy and Frechet distance by an independent judge,
// variance within a class, distance to the first generator. Accuracy alone misleads: a generator
// that has collapsed to class means is classified perfectly.
#pragma once

#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "tiltflow/tensor/statistics.h"
#include "tiltflow/train/onestep.h"

namespace tiltflow {

struct GeneratorEntry {
  std::string
      name;  // entries of one name are repetitions: their mean and its standard error make one row
  std::filesystem::path file;
  std::filesystem::path pairs;  // folder of `tiltflow assign` whose pairs it is measured on; "" =
                                // those of the options
};

struct GeneratorComparisonOptions {
  std::vector<GeneratorEntry> entries;  // the first is the base
  std::string judge;                    // classifier file: accuracy and features
  std::filesystem::path pairs;          // "" = no matched reconstruction
  std::int64_t n = 2000;                // random samples, the same noise and labels for all
  std::int64_t held_out = 128;          // targets of the test split that get noise anew; 0 = none
  std::function<void(std::int64_t done, std::int64_t total)> progress;
};

struct ComparedGenerator {
  std::string name;
  std::int64_t repetitions = 1;
  std::vector<std::pair<std::string, std::optional<Estimate>>> figures;
  at::Tensor samples;  // of its first repetition, [N, C, H, W] in [0, 1]
};

struct GeneratorComparison {
  std::string judge;
  std::int64_t n = 0;
  std::int64_t held_out = 0;
  std::vector<ComparedGenerator> rows;  // real pictures first
  std::vector<std::string>
      collapsed;  // names whose variance within a class is below half of the base's
};

// `config` says how generator files are read, where the targets are and how noise is assigned.
// Throws kConfig, kBadFile.
GeneratorComparison compare_generators(const OneStepConfig& config,
                                       const GeneratorComparisonOptions& options);

// Mean over classes and entries of the variance within a class; standard error from 10 interleaved
// groups. labels undefined: one class.
Estimate variance_within_classes(const at::Tensor& images, const at::Tensor& labels);

std::string table_text(const GeneratorComparison& comparison);
std::string to_html(const GeneratorComparison& comparison);
nlohmann::ordered_json to_json(const GeneratorComparison& comparison);

}  // namespace tiltflow
