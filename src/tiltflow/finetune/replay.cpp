#include "tiltflow/finetune/replay.h"

#include <algorithm>
#include <cstdlib>

#include "tiltflow/base/error.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/tensor/aten.h"
#include "tiltflow/tensor/process_group.h"

namespace tiltflow {

void bind(Fields& f, ReplayConfig& c) {
  f.value("refresh", c.refresh, "optimiser steps per rollout", at_least_integer(1));
  f.value("replay", c.replay, "rollouts kept in the buffer", at_least_integer(1));
}

void ReplayBuffer::require_alone(const std::string& method, bool will_reuse) {
  if (world_size() > 1) {
    fail(ErrorKind::kConfig, method + " keeps its buffer in one process",
         "run it without `launch`");
  }
  if (will_reuse) {
    fail(ErrorKind::kConfig, method + " has a buffer of its own: buffer_passes must be 1",
         "set method.refresh and method.replay instead");
  }
}

ReplayBuffer::Columns ReplayBuffer::draw(const FinetuneContext& context, std::int64_t step,
                                         std::int64_t first, std::int64_t n,
                                         const std::function<Columns()>& fresh, Columns* newest) {
  Columns stored;
  {
    const std::lock_guard lock(mutex_);
    stored = kept_[first];
  }
  if (stored.empty() || step % config_.refresh == 0) {
    const Columns made = fresh();
    if (stored.empty()) stored.resize(made.size());
    for (std::size_t j = 0; j < made.size(); ++j) {
      const at::Tensor all = stored[j].defined() ? at::cat({stored[j], made[j]}) : made[j];
      const std::int64_t length = std::min(all.size(0), config_.replay * n);
      stored[j] = all.narrow(0, all.size(0) - length, length).clone();
    }
    const std::lock_guard lock(mutex_);
    kept_[first] = stored;
  }
  const std::int64_t held = stored[0].size(0);
  const at::Tensor u = context.streams.uniform(Purpose::kSubset, static_cast<std::uint32_t>(step),
                                               first, n, {}, at::kDouble);
  const at::Tensor rows = (u * static_cast<double>(held)).to(at::kLong).clamp_max(held - 1);
  Columns out;
  if (newest) newest->clear();
  for (const at::Tensor& column : stored) {
    out.push_back(column.index_select(0, rows));
    if (newest) newest->push_back(column.narrow(0, held - n, n));
  }
  return out;
}

ParameterSet ReplayBuffer::state() const {
  const std::lock_guard lock(mutex_);
  ParameterSet out;
  for (const auto& [first, columns] : kept_) {
    for (std::size_t j = 0; j < columns.size(); ++j) out.add(cat(first, ".", j), columns[j]);
  }
  return out;
}

void ReplayBuffer::restore(const ParameterSet& state) {
  kept_.clear();
  for (const auto& [name, tensor] : state) {
    Columns& columns = kept_[std::atoll(name.c_str())];
    const auto j = static_cast<std::size_t>(std::atoll(name.c_str() + name.find('.') + 1));
    if (columns.size() <= j) columns.resize(j + 1);
    columns[j] = tensor.clone();
  }
}

}  // namespace tiltflow
