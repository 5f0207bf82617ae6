#include "tiltflow/train/running_statistics.h"

#include "tiltflow/tensor/aten.h"

namespace tiltflow {

void RunningStatistics::propose(std::int64_t piece, ParameterSet buffers) {
  const std::lock_guard lock(mutex_);
  proposals_[static_cast<std::size_t>(piece)] = std::move(buffers);
}

void RunningStatistics::take() {
  const at::NoGradGuard no_grad;
  for (const auto& [name, buffer] : buffers_) {
    at::Tensor sum;
    double count = 0;
    for (const ParameterSet& proposal : proposals_) {
      if (!proposal.contains(name)) continue;
      const at::Tensor& one = proposal.at(name);
      sum = sum.defined() ? sum + one : one;
      ++count;
    }
    at::Tensor target = buffer;
    if (sum.defined()) {
      target.copy_(sum.is_floating_point() ? sum / count
                                           : sum.floor_divide(static_cast<std::int64_t>(count)));
    }
  }
  proposals_.clear();
}

ParameterSet buffers_of(const Generator& generator) {
  ParameterSet out;
  for (const auto& [name, tensor] : generator.parameters()) {
    if (generator.is_buffer(name)) out.add(name, tensor);
  }
  return out;
}

void recalibrate(const Generator& generator, const RandomStreams& streams, std::int64_t batches,
                 std::int64_t batch) {
  const at::NoGradGuard no_grad;
  RunningStatistics statistics(buffers_of(generator));
  for (std::int64_t i = 0; i < batches; ++i) {
    const auto step = static_cast<std::uint32_t>(i);
    const at::Tensor z =
        streams.normal(Purpose::kProbe, step, 0, 0, batch, generator.noise_shape());
    const at::Tensor labels = generator.classes() > 0 ? streams.integers(Purpose::kProbe, step, 0,
                                                                         batch, generator.classes())
                                                      : at::Tensor();
    statistics.begin(1);
    statistics.propose(0, generator.generate_in_training(z, labels).buffers);
    statistics.take();
  }
}

}  // namespace tiltflow
