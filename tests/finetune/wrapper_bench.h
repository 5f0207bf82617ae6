// A mixture and a context around it for what wraps a reward.
#pragma once

#include "tests/support.h"
#include "tiltflow/sampler/fields.h"
#include "tiltflow/train/finetuning.h"
#include "tiltflow/verify/problems.h"

namespace tiltflow::test {

inline const RandomStreams kWrapperStreams(5);

struct WrapperBench {
  ExactProblem problem = plane_modes(false);
  std::shared_ptr<CountingField> counted = std::make_shared<CountingField>(problem.base);
  Policy policy;
  TransitionTable table;
  LabelSource labels = no_labels();
  WrapperBench() {
    policy.base = problem.base;
    policy.tuned = counted;
    SamplerConfig sampler;
    sampler.steps = 12;
    table = table_of(sampler, *problem.path);
  }
  FinetuneContext context() const {
    return {policy,          *problem.reward, *problem.path, table,
            kWrapperStreams, labels,          {2},           at::kFloat};
  }
};

}  // namespace tiltflow::test
