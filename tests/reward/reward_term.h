// One term of a reward by its name.
#pragma once

#include "tests/support.h"
#include "tiltflow/reward/reward.h"

namespace tiltflow::test {

inline RewardTerm reward_term(const std::string& name, double scale) {
  RewardTerm t;
  t.name = name;
  t.scale = scale;
  return t;
}

}  // namespace tiltflow::test
