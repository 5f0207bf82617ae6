// The exactness suite: everything tiltflow claims about its laws, checked against closed forms, and
// deliberately broken variants that must fail the same checks.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "tiltflow/verify/table.h"

namespace tiltflow {

struct VerifyOptions {
  bool full = false;     // quick: about a minute on two cores
  bool methods = false;  // the fine-tuning methods instead, each on what it is known to sample
  std::uint64_t seed = 1;
  std::string only;  // part of a task's name; empty: all tasks
  // Before the first task (done = 0) and after every task, in order of completion, one call at a
  // time.
  std::function<void(int done, int total, const std::string& task,
                     const std::vector<VerifyRow>& rows)>
      finished;
};

// Throws kUsage when `only` fits no task.
VerifyReport run_verify(const VerifyOptions& options);

}  // namespace tiltflow
