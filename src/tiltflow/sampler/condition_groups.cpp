#include "tiltflow/sampler/condition_groups.h"

#include <algorithm>

#include "tiltflow/base/count.h"
#include "tiltflow/base/error.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/tensor/aten.h"

namespace tiltflow {
namespace {

void count_samples(const at::Tensor& drawn, ConditionGroups& groups) {
  const at::Tensor counts = std::get<2>(at::_unique2(drawn, true, false, true));
  groups.conditions = counts.size(0);
  groups.smallest = counts.min().item<std::int64_t>();
  groups.largest = counts.max().item<std::int64_t>();
}

// Sample i is of the condition at place (i / run) modulo their number.
LabelSource in_turn(const at::Tensor& conditions, std::int64_t run) {
  return [conditions, run](std::int64_t first, std::int64_t n) {
    const at::Tensor turns = at::arange(first, first + n).floor_divide(run);
    return conditions.index_select(0, turns.remainder(conditions.size(0)));
  };
}

}  // namespace

ConditionGroups in_groups(const LabelSource& labels, const LabelSource& choices, std::int64_t n,
                          const GroupingOptions& options, const std::string& what) {
  ConditionGroups out;
  out.labels = labels;
  out.smallest = n;
  out.largest = n;
  const at::Tensor drawn = labels(0, n);
  if (!drawn.defined()) return out;
  out.conditional = true;
  count_samples(drawn, out);
  const bool enough = n >= options.least * out.conditions && 4 * out.smallest >= options.least;
  if (out.conditions == 1 || enough) return out;
  const std::int64_t number = std::min(options.most, n / options.least);
  if (number < 1) {
    fail(ErrorKind::kConfig,
         cat(what, " = ", n, ": the law of a condition is measured on ", options.least,
             " samples of it"),
         cat("set ", what, " = ", options.least, " or more, or lower check.per_condition"));
  }
  out.chosen = true;
  const std::int64_t run = std::min(options.run, options.least);
  out.block = number * run;
  out.labels = in_turn(choices(0, number), run);
  count_samples(out.labels(0, out.whole(n)), out);
  return out;
}

std::string law_text(const ConditionGroups& groups) {
  if (!groups.conditional) return "p*(x), without a condition";
  const std::string samples = groups.smallest == groups.largest
                                  ? counted(groups.smallest, "sample")
                                  : cat(groups.smallest, " to ", groups.largest, " samples");
  if (groups.conditions == 1) return cat("p*(x | c) of one condition, ", samples);
  return cat("p*(x | c) of ", groups.conditions, " conditions", groups.chosen ? " of more" : "",
             ", ", samples, " of each");
}

}  // namespace tiltflow
