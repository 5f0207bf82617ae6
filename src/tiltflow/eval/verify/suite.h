// The exactness suite: everything tiltflow claims about its laws, checked against closed forms, and deliberately broken
// variants that must fail the same checks.
#pragma once

#include <functional>

#include "tiltflow/eval/verify/table.h"

namespace tiltflow {

struct VerifyOptions {
  bool full = false;        // quick: about a minute on two cores
  std::uint64_t seed = 1;
  std::function<void(int done, int total)> progress;
};

VerifyReport run_verify(const VerifyOptions& options);

}  // namespace tiltflow
