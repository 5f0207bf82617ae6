// Target images one by one: a data set, a folder of pictures or a list of pairs; a bad one is an
// error of its own, not of the set.
#pragma once

#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "tiltflow/config/fields.h"
#include "tiltflow/io/dataset.h"
#include "tiltflow/models/generator/generator.h"

namespace tiltflow {

struct TargetsConfig {
  std::string format = "idx";
  std::string path;  // idx, cifar, folder as in DatasetConfig; pairs:
                     // path/pairs.jsonl, one {"image": FILE, "label": N} a line
  std::string split = "train";
  std::int64_t size = 0;       // central square of this size; 0 = as they are
  std::string alpha = "drop";  // of transparent pixels: DatasetConfig::alpha
  std::int64_t first = 0;
  std::int64_t count = 2048;  // items first .. first + count of the set; count 0 = all
};
void bind(Fields& f, TargetsConfig& c);

struct Target {
  std::int64_t id = 0;                  // position in the whole set
  std::string name;                     // file, or "train 17"
  std::function<at::Tensor()> image;    // [C, H, W] in [-1, 1]; throws kBadFile, kNonFinite
  std::function<std::int64_t()> label;  // throws kBadFile when the entry has none
};
// In order of their ids. Throws kBadFile when the set itself cannot be read, kConfig for an empty
// selection.
std::vector<Target> list_targets(const TargetsConfig& config);

// A target as a generator needs it: its shape (grey is repeated for three channels), finite, a
// label in range. Throws kBadFile.
struct CheckedTarget {
  at::Tensor image;
  std::int64_t label = 0;
};
CheckedTarget read_target(const Target& target, const Generator& generator);

}  // namespace tiltflow
