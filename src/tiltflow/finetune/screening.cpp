#include "tiltflow/finetune/screening.h"

#include <algorithm>
#include <cmath>

#include "tiltflow/base/count.h"
#include "tiltflow/base/error.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/tensor/aten.h"

namespace tiltflow {
namespace {

// Euler steps of the ODE through `count` of the table's times.
TransitionTable euler_through(const TransitionTable& table, std::int64_t count) {
  const std::int64_t all = table.size();
  const auto time = [&](std::int64_t i) {
    return i == all ? table.t_end : table.steps[static_cast<std::size_t>(i)].t;
  };
  TransitionTable out;
  out.name = "ode";
  out.t_end = table.t_end;
  out.memoryless = false;
  count = std::min(count, all);
  for (std::int64_t i = 0; i < count; ++i) {
    const double here = time(i * all / count);
    const double next = time((i + 1) * all / count);
    out.steps.push_back({here, 1, next - here, 0});
  }
  return out;
}

at::Tensor end_points(const VelocityField& field, const TransitionTable& table,
                      const at::Tensor& x_0, const at::Tensor& labels) {
  return rollout(field, table, x_0, Condition{labels}, [&x_0](int) { return at::zeros_like(x_0); })
      .last;
}

double correlation(const at::Tensor& a, const at::Tensor& b) {
  const at::Tensor x = a.to(at::kDouble) - a.to(at::kDouble).mean();
  const at::Tensor y = b.to(at::kDouble) - b.to(at::kDouble).mean();
  return ((x * y).sum() / (x.norm() * y.norm() + 1e-300)).item<double>();
}

}  // namespace

void bind(Fields& f, ScreeningConfig& c) {
  f.value("candidates", c.candidates,
          "seeds drafted for each group, of which the best and worst are kept; 0 = no screening",
          at_least_integer(0));
  f.value("draft_steps", c.draft_steps, "deterministic steps of a draft", at_least_integer(1));
}

at::Tensor screened_end_points(const FinetuneContext& context, const VelocityField& field,
                               std::uint32_t key, std::int64_t first, std::int64_t n,
                               std::int64_t group, const at::Tensor& labels,
                               const ScreeningConfig& config, MetricSums& metrics,
                               at::Tensor* rewards) {
  if (config.candidates < group) {
    fail(ErrorKind::kConfig,
         cat("method.candidates = ", config.candidates, " is less than method.group = ", group),
         "draft more seeds than are kept, e.g. four times as many");
  }
  if (n % group || first % group) {
    fail(ErrorKind::kConfig,
         cat(counted(n, "sample"), " in a piece of work are no multiple of method.group = ", group),
         "choose batch and micro_batch as multiples of method.group");
  }
  const std::int64_t groups = n / group;
  const std::int64_t count = groups * config.candidates;
  const at::Tensor x_0 = prior_sample(context.streams, key, first / group * config.candidates,
                                      count, context.sample_shape, context.dtype);
  const at::Tensor of_groups =
      labels.defined() ? labels.slice(0, 0, n, group).repeat_interleave(config.candidates) : labels;
  const at::Tensor drafts = context.reward.score(
      end_points(field, euler_through(context.table, config.draft_steps), x_0, of_groups),
      of_groups);
  const at::Tensor order =
      std::get<1>(drafts.view({groups, config.candidates})
                      .sort(std::optional<bool>(true), 1, /*descending=*/true));
  const std::int64_t best = (group + 1) / 2;
  const at::Tensor chosen = at::cat(
      {order.narrow(1, 0, best), order.narrow(1, config.candidates - (group - best), group - best)},
      1);
  const at::Tensor rows =
      (chosen + at::arange(groups, at::kLong).unsqueeze(1) * config.candidates).flatten();
  const at::Tensor x_1 = end_points(field, euler_through(context.table, context.table.size()),
                                    x_0.index_select(0, rows), labels);
  const at::Tensor full = context.reward.score(x_1, labels);
  if (rewards) *rewards = full;
  metrics.add("draft_correlation",
              correlation(drafts.index_select(0, rows), full) * static_cast<double>(n),
              static_cast<double>(n));
  return x_1;
}

}  // namespace tiltflow
