// Running statistics of normalisation layers while pieces of a batch are worked on side by side:
// each piece proposes what they become, the mean of the proposals, in the order of the pieces, is
// taken at the end of the step.
#pragma once

#include <mutex>
#include <vector>

#include "tiltflow/models/generator/generator.h"

namespace tiltflow {

class RunningStatistics {
 public:
  explicit RunningStatistics(ParameterSet buffers)
      : buffers_(std::move(buffers)) {}  // shared with the generator, written in place
  void begin(std::int64_t pieces) { proposals_.assign(static_cast<std::size_t>(pieces), {}); }
  void propose(std::int64_t piece, ParameterSet buffers);  // thread-safe
  void take();
  const ParameterSet& buffers() const { return buffers_; }

 private:
  ParameterSet buffers_;
  std::vector<ParameterSet> proposals_;
  std::mutex mutex_;
};

// The generator's buffers, by reference.
ParameterSet buffers_of(const Generator& generator);
// Running statistics anew for weights that were averaged: `batches` batches of `batch` samples of
// N(0, I) and uniform labels.
void recalibrate(const Generator& generator, const RandomStreams& streams, std::int64_t batches,
                 std::int64_t batch);

}  // namespace tiltflow
