// Assigning noise to a set of targets as resumable work in a folder, and the set of pairs that
// comes out.
#pragma once

#include <filesystem>

#include "tiltflow/config/resume.h"
#include "tiltflow/noise/assign.h"
#include "tiltflow/noise/diagnostics.h"
#include "tiltflow/noise/targets.h"

namespace tiltflow {

// What training needs of an assignment: one file, nothing beside it.
struct AssignedSet {
  at::Tensor noise, base;  // [N, d] fp32
  at::Tensor images;       // [N, sample...] uint8, the targets
  at::Tensor labels, ids;  // [N] int64
  at::Tensor loss;         // [N] double
  std::int64_t size() const { return noise.size(0); }
  AssignTargets targets() const;  // images in [-1, 1]
};
AssignedSet read_assigned(
    const std::filesystem::path& file);  // a file or the folder that holds it; throws kBadFile
void write_assigned(const std::filesystem::path& file, const AssignedSet& set);

// All targets of a list at once. Throws what read_target throws, at the first bad one.
AssignTargets read_targets(const TargetsConfig& config, const Generator& generator);

struct AssignRunOptions {
  std::filesystem::path out;
  RunStart start;           // identifies the request; another one in the folder is refused
  std::uint32_t round = 0;  // keys random starts
  const AssignedSet* warm = nullptr;  // continue from these noises, matched by id
  std::int64_t shard = 0;
  std::int64_t shards = 1;  // this process takes every shards-th chunk
  bool retry_failed = false;
  std::function<void(std::int64_t done, double mean_loss)> progress;
};
struct AssignSummary {
  bool complete = false;  // every target of every shard was tried, and the result is packed
  std::int64_t targets = 0;
  std::int64_t assigned = 0;
  std::int64_t failed = 0;
  std::int64_t forwards = 0;
  std::int64_t backwards = 0;
  double loss = 0;
  double loss_se = 0;
  double start_loss = 0;  // means over assigned targets
  NoiseReport noise;      // of z; empty below 8 targets
};
// Writes OUT/store while it works; at the end OUT/assigned.safetensors, manifest.jsonl,
// failures.jsonl, summary.json, pairs.png, noise.json, all the same after any interruption and for
// any number of shards. A target that cannot be read or whose loss is not finite becomes a failure;
// the others go on. Throws kStopped on a signal; finished chunks are kept.
AssignSummary run_assignment(const Generator& generator, const Assigner& assigner,
                             const AssignConfig& config, const std::vector<Target>& targets,
                             const RandomStreams& streams, const AssignRunOptions& options);

}  // namespace tiltflow
