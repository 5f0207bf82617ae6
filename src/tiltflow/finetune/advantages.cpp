#include "tiltflow/finetune/advantages.h"

#include "tiltflow/base/count.h"
#include "tiltflow/base/error.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/tensor/aten.h"

namespace tiltflow {

void bind(Fields& f, AdvantageConfig& c) {
  f.value("group", c.group,
          "consecutive samples that share a label and are compared; must divide micro_batch",
          at_least_integer(1));
  f.value("advantage", c.kind,
          "value (the reward itself), centred, group (centred, over the group's deviation), batch "
          "(over that of all), rank, pairwise (wins within the group)",
          one_of({"value", "centred", "group", "batch", "rank", "pairwise"}));
  f.value("advantage_clip", c.clip, "largest advantage; 0 = none", at_least(0));
}

LabelSource grouped(LabelSource labels, std::int64_t group) {
  if (group == 1) return labels;
  return [labels = std::move(labels), group](std::int64_t first, std::int64_t n) -> at::Tensor {
    const std::int64_t begin = first / group;
    const std::int64_t end = (first + n + group - 1) / group;
    const at::Tensor each = labels(begin, end - begin);
    return each.defined() ? each.repeat_interleave(group).narrow(0, first - begin * group, n)
                          : at::Tensor();
  };
}

at::Tensor shares_of_best(const at::Tensor& groups) {
  const at::Tensor best = (groups == groups.amax(1, /*keepdim=*/true)).to(at::kDouble);
  return best / best.sum(1, /*keepdim=*/true);
}

namespace {

// Places of rewards within their group, from 0; those that tie share the mean of the places they
// fill. [g, G] -> [g, G]
at::Tensor places(const at::Tensor& r) {
  const at::Tensor own = r.unsqueeze(2);
  const at::Tensor others = r.unsqueeze(1);
  const at::Tensor below = (others < own).sum(2).to(at::kDouble);
  const at::Tensor tied = (others == own).sum(2).to(at::kDouble) - 1;  // without the sample itself
  return below + 0.5 * tied;
}

}  // namespace

at::Tensor advantages(const at::Tensor& rewards, const AdvantageConfig& c) {
  if (c.kind == "value") return c.clip > 0 ? rewards.clamp(-c.clip, c.clip) : rewards;
  const std::int64_t n = rewards.size(0);
  if (n % c.group) {
    fail(ErrorKind::kConfig,
         cat(counted(n, "sample"),
             " in a piece of work are no multiple of method.group = ", c.group),
         "choose batch and micro_batch as multiples of method.group");
  }
  if (c.group < 2) {
    fail(ErrorKind::kConfig, cat("method.advantage = \"", c.kind,
                                 "\" compares samples: method.group must be 2 or more"));
  }
  const at::Tensor r = rewards.to(at::kDouble).view({-1, c.group});
  at::Tensor a = r - r.mean(1, true);
  if (c.kind == "group") a = a / (r.std(1, /*unbiased=*/false, true) + 1e-4);
  if (c.kind == "batch") a = a / (a.square().mean().sqrt() + 1e-4);
  if (c.kind == "rank") {
    const at::Tensor place = places(r);
    const at::Tensor deviation = place.std(1, /*unbiased=*/false, /*keepdim=*/true);
    a = (place - place.mean(1, true)) / deviation.clamp_min(1e-9);  // 0 in a group of equal rewards
  }
  if (c.kind == "pairwise") {
    const at::Tensor wins =
        at::sigmoid(r.unsqueeze(2) - r.unsqueeze(1)).sum(2) - 0.5;  // without the sample itself
    a = 2 * wins / static_cast<double>(c.group - 1) - 1;
  }
  if (c.clip > 0) a = a.clamp(-c.clip, c.clip);
  return a.view({n}).to(rewards.scalar_type());
}

}  // namespace tiltflow
