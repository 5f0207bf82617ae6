// A network whose calls are recorded as CUDA graphs: a call of a small network costs less than
// launching its kernels one by one, so from the second call of a kind on (shapes, and what asks for
// gradients) all of them are launched at once, forward and backward. The same kernels on the same
// numbers: results are those of the plain call. Elsewhere than on CUDA a plain call.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <vector>

namespace tiltflow {

class RecordedNetwork {
 public:
  using Function = std::function<at::Tensor(const std::vector<at::Tensor>&)>;
  // `network`: on tensors of one device, without waiting for it or reading from it, fp32 in the
  // first input; calls with more than `largest` rows there are plain (their kernels take longer
  // than their launches). `weights`: tensors it reads that may ask for gradients; they stay where
  // they are, their values may change. `refresh` is called before a recording is replayed, for what
  // is made of the weights beforehand.
  RecordedNetwork(Function network, std::vector<at::Tensor> weights, std::function<void()> refresh,
                  std::int64_t largest);
  ~RecordedNetwork();
  RecordedNetwork(const RecordedNetwork&) = delete;
  RecordedNetwork& operator=(const RecordedNetwork&) = delete;

  // network(inputs), differentiable once in inputs and weights. Not to be called by several threads
  // at a time: with several workers, and on the default stream, a plain call.
  at::Tensor operator()(const std::vector<at::Tensor>& inputs) const;
  // Calls that were replayed so far, of all networks: for tests.
  static std::int64_t replays();

 private:
  struct Recording;
  struct Kind;
  friend struct RecordedCall;
  std::shared_ptr<Recording> record(const std::vector<at::Tensor>& inputs, bool graph) const;
  // A recording of this kind that is free, made when there is none; null: the call must be plain.
  std::shared_ptr<Recording> free_recording(Kind& kind, const std::vector<at::Tensor>& inputs,
                                            bool graph) const;

  Function network_;
  std::vector<at::Tensor> weights_;
  std::function<void()> refresh_;
  std::int64_t largest_;
  mutable std::map<std::vector<std::int64_t>, Kind> kinds_;
  mutable std::int64_t calls_ = 0;
};

}  // namespace tiltflow
