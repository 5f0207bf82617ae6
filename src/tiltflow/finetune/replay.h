// Samples that serve many steps: every `refresh` steps a micro-batch draws new ones, the newest
// `rollouts` batches are kept, and each step takes rows of them at random.
#pragma once

#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "tiltflow/config/fields.h"
#include "tiltflow/finetune/method.h"

namespace tiltflow {

struct ReplayConfig {
  std::int64_t refresh = 4;  // steps per rollout
  std::int64_t replay = 16;  // rollouts kept
};
void bind(Fields& f, ReplayConfig& c);

class ReplayBuffer {
 public:
  using Columns = std::vector<at::Tensor>;  // [n, ...] each
  explicit ReplayBuffer(ReplayConfig config) : config_(config) {}
  // Throws kConfig for several processes and reused batches: the buffer is one process's and has
  // its own reuse.
  static void require_alone(const std::string& method, bool will_reuse);
  // Rows for samples first..first+n of `step`; `fresh` makes n new ones where they are due.
  // `newest` (if given) receives the last rollout. Thread-safe for different `first`.
  Columns draw(const FinetuneContext& context, std::int64_t step, std::int64_t first,
               std::int64_t n, const std::function<Columns()>& fresh, Columns* newest = nullptr);
  ParameterSet state() const;  // names FIRST.COLUMN
  void restore(const ParameterSet& state);

 private:
  ReplayConfig config_;
  mutable std::mutex mutex_;
  std::map<std::int64_t, Columns> kept_;  // by first sample of a micro-batch; oldest first
};

}  // namespace tiltflow
