// Which conditions a set of samples is of. A law p*(x | c) is measured on several samples of the
// same condition c: of a condition that is drawn once neither log Z nor its error is known.
#pragma once

#include <cstdint>
#include <string>

#include "tiltflow/sampler/labels.h"

namespace tiltflow {

struct GroupingOptions {
  std::int64_t least = 24;  // samples of a condition
  std::int64_t most = 64;   // conditions, when they have to be chosen
  // Consecutive samples of one condition. 32 gives every group of the jackknife the same
  // conditions; 1 shows as many conditions as possible in the first pictures.
  std::int64_t run = 1;
};

struct ConditionGroups {
  LabelSource labels;
  std::int64_t conditions = 1;  // distinct ones; 1 without labels
  std::int64_t smallest = 0;    // samples of the rarest condition
  std::int64_t largest = 0;
  bool conditional = false;  // false: no labels, one unconditional law
  bool chosen = false;       // the conditions are a few of those that the labels would name
  std::int64_t block = 1;    // equal shares of the conditions need a multiple of so many samples

  // The largest such multiple that is at most n.
  std::int64_t whole(std::int64_t n) const { return n / block * block; }
};

// Labels for n samples. Those of `labels`, when their conditions have `least` samples on average
// among the first n, and none less than a quarter of that. Else n / least conditions (at most
// `most`) in equal shares: the first ones that `choices` names, which are therefore drawn from the
// law of the conditions; one that is named twice has two shares. Throws kConfig when n is less than
// `least`, naming `what`, the key of n. Cost: labels of n samples.
ConditionGroups in_groups(const LabelSource& labels, const LabelSource& choices, std::int64_t n,
                          const GroupingOptions& options, const std::string& what);

// "p*(x | c) of 48 conditions, 32 samples of each" and the like.
std::string law_text(const ConditionGroups& groups);

}  // namespace tiltflow
