#include "tiltflow/nn/recorded.h"

#ifdef TILTFLOW_CUDA
#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/csrc/autograd/custom_function.h>
#endif

#include <algorithm>
#include <exception>

#include "tiltflow/base/error.h"
#include "tiltflow/base/log.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/tensor/aten.h"
#include "tiltflow/tensor/device.h"
#include "tiltflow/tensor/parallel.h"

namespace tiltflow {

namespace {
// Recordings keep their activations.
[[maybe_unused]] constexpr std::size_t kKinds = 12;  // of calls, for each network
[[maybe_unused]] constexpr std::size_t kInFlight =
    32;  // calls of a kind whose backward pass is still to come
[[maybe_unused]] constexpr double kMemoryShare =
    0.4;  // of the device's memory, for the recordings of all networks
std::int64_t g_replays = 0;
[[maybe_unused]] double g_recorded_bytes = 0;
}  // namespace

std::int64_t RecordedNetwork::replays() { return g_replays; }

#ifndef TILTFLOW_CUDA

struct RecordedNetwork::Recording {};
struct RecordedNetwork::Kind {};
RecordedNetwork::RecordedNetwork(Function network, std::vector<at::Tensor> weights,
                                 std::function<void()> refresh, std::int64_t largest)
    : network_(std::move(network)),
      weights_(std::move(weights)),
      refresh_(std::move(refresh)),
      largest_(largest) {}
RecordedNetwork::~RecordedNetwork() = default;
at::Tensor RecordedNetwork::operator()(const std::vector<at::Tensor>& inputs) const {
  return network_(inputs);
}

#else

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct RecordedNetwork::Recording {
  variable_list inputs;  // written before a replay
  at::Tensor output, cotangent;
  std::vector<std::size_t> wanted;  // places of `gradients` among inputs and weights
  variable_list gradients;          // undefined where the output does not depend on it
  at::cuda::CUDAGraph forward, backward;
  bool busy = false;   // between a forward and the end of its autograd graph
  bool spent = false;  // the backward pass has written over the activations
  double bytes = 0;    // that it took from the device
  ~Recording() { g_recorded_bytes -= bytes; }
};

struct RecordedNetwork::Kind {
  std::int64_t calls = 0;
  std::int64_t last = 0;
  std::size_t most = kInFlight;  // recordings; fewer when one more could not be made
  std::vector<std::shared_ptr<Recording>> recordings;
};

namespace {
struct Lease : torch::CustomClassHolder {
  explicit Lease(std::function<void()> end) : end_(std::move(end)) {}
  ~Lease() override { end_(); }
  std::function<void()> end_;
};

// Records `work` into a graph whose memory is that of `pool`.
void capture(at::cuda::CUDAGraph& into, at::cuda::MempoolId_t pool,
             const std::function<void()>& work) {
  into.capture_begin(pool, cudaStreamCaptureModeThreadLocal);
  try {
    work();
  } catch (...) {
    const std::exception_ptr reason = std::current_exception();
    try {
      into.capture_end();
    } catch (const std::exception&) {  // broken off; the reason is the first error
    }
    std::rethrow_exception(reason);
  }
  into.capture_end();
}
}  // namespace

struct RecordedCall : torch::autograd::Function<RecordedCall> {
  using Recording = RecordedNetwork::Recording;

  static at::Tensor forward(AutogradContext* context, const std::shared_ptr<Recording>& recording,
                            at::TensorList tensors) {
    recording->busy = true;
    recording->spent = false;
    context->saved_data["tensors"] = static_cast<std::int64_t>(tensors.size());
    context->saved_data["lease"] = c10::IValue::make_capsule(
        c10::make_intrusive<Lease>([recording] { recording->busy = false; }));
    context->saved_data["recording"] =
        reinterpret_cast<std::int64_t>(recording.get());  // alive as long as the lease
    recording->forward.replay();
    return recording->output.clone();
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    if (at::GradMode::is_enabled()) {
      fail(ErrorKind::kFailure, "recorded calls have no second derivatives",
           "set compute.graphs = false and compute.kernels = \"plain\"");
    }
    Recording& recording = *reinterpret_cast<Recording*>(context->saved_data["recording"].toInt());
    if (recording.spent) recording.forward.replay();  // asked again, with retain_graph
    recording.spent = true;
    recording.cotangent.copy_(gradients[0]);
    recording.backward.replay();
    variable_list result(1 + static_cast<std::size_t>(context->saved_data["tensors"].toInt())),
        from, to;  // the first is of the recording itself
    for (std::size_t i = 0; i < recording.wanted.size(); ++i) {
      if (!recording.gradients[i].defined()) continue;
      from.push_back(recording.gradients[i]);
      to.push_back(at::empty_like(from.back()));
      result[1 + recording.wanted[i]] = to.back();
    }
    at::_foreach_copy_(to, from);
    return result;
  }
};

RecordedNetwork::RecordedNetwork(Function network, std::vector<at::Tensor> weights,
                                 std::function<void()> refresh, std::int64_t largest)
    : network_(std::move(network)),
      weights_(std::move(weights)),
      refresh_(std::move(refresh)),
      largest_(largest) {}
RecordedNetwork::~RecordedNetwork() = default;

std::shared_ptr<RecordedNetwork::Recording> RecordedNetwork::record(
    const std::vector<at::Tensor>& inputs, bool graph) const {
  auto out = std::make_shared<Recording>();
  variable_list roots;
  const auto want = [&](const at::Tensor& tensor, std::size_t place) {
    if (graph && tensor.requires_grad()) {
      out->wanted.push_back(place);
      roots.push_back(tensor);
    }
  };
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    const at::NoGradGuard no_grad;
    out->inputs.push_back(inputs[i].detach().clone(at::MemoryFormat::Contiguous));
    if (graph && inputs[i].requires_grad()) out->inputs.back().set_requires_grad(true);
    want(out->inputs.back(), i);
  }
  for (std::size_t i = 0; i < weights_.size(); ++i) want(weights_[i], inputs.size() + i);

  const at::AutoGradMode mode(graph);
  const auto gradients = [&](const at::Tensor& output) {
    return torch::autograd::grad({output}, roots, {out->cotangent}, /*retain_graph=*/false,
                                 /*create_graph=*/false, /*allow_unused=*/true);
  };
  const c10::cuda::CUDAGuard device(inputs[0].device());
  const auto reserved = [&] {
    return static_cast<double>(
        c10::cuda::CUDACachingAllocator::getDeviceStats(inputs[0].device().index())
            .reserved_bytes[0]
            .current);
  };
  {  // sets up libraries and makes what is kept of the weights; recorded work may do neither
    const at::Tensor output = network_(out->inputs);
    if (graph) {
      out->cotangent = at::ones_like(output.detach());
      gradients(output);
    }
  }
  c10::cuda::device_synchronize();
  const double before = reserved();
  capture(out->forward, {0, 0}, [&] { out->output = network_(out->inputs); });
  if (graph) {
    capture(out->backward, out->forward.pool(), [&] { out->gradients = gradients(out->output); });
  }
  out->output = out->output.detach();
  for (at::Tensor& input : out->inputs) input = input.detach();
  out->bytes = std::max(0.0, reserved() - before);
  g_recorded_bytes += out->bytes;
  return out;
}

std::shared_ptr<RecordedNetwork::Recording> RecordedNetwork::free_recording(
    Kind& kind, const std::vector<at::Tensor>& inputs, bool graph) const {
  const auto idle = [](const std::shared_ptr<Recording>& recording) { return !recording->busy; };
  const auto free = std::find_if(kind.recordings.begin(), kind.recordings.end(), idle);
  if (free != kind.recordings.end()) return *free;
  if (kind.recordings.size() >= kind.most ||
      g_recorded_bytes > kMemoryShare * device_total_bytes()) {
    return nullptr;
  }
  if (kinds_.size() > kKinds) {
    const auto oldest = std::min_element(
        kinds_.begin(), kinds_.end(),
        [](const auto& a, const auto& b) { return a.second.last < b.second.last; });
    if (std::all_of(oldest->second.recordings.begin(), oldest->second.recordings.end(), idle)) {
      kinds_.erase(oldest);
    }
  }
  try {
    kind.recordings.push_back(record(inputs, graph));
  } catch (const std::exception& error) {
    const std::string text = error.what();
    log_warn(cat("a network call cannot be recorded as a CUDA graph and runs kernel by kernel: ",
                 text.substr(0, text.find('\n'))));
    kind.most = kind.recordings.size();
    return nullptr;
  }
  return kind.recordings.back();
}

at::Tensor RecordedNetwork::operator()(const std::vector<at::Tensor>& inputs) const {
  const auto on_default_stream = [&] {
    return c10::cuda::getCurrentCUDAStream(inputs[0].device().index()) ==
           c10::cuda::getDefaultCUDAStream(inputs[0].device().index());
  };
  if (!inputs[0].is_cuda() || inputs[0].scalar_type() != at::kFloat ||
      inputs[0].size(0) > largest_ || inputs[0].size(0) == 0 || thread_policy().workers > 1 ||
      on_default_stream()) {
    return network_(inputs);
  }
  const bool grad = at::GradMode::is_enabled();
  const auto asks = [&](const at::Tensor& tensor) { return grad && tensor.requires_grad(); };
  const bool graph = std::any_of(inputs.begin(), inputs.end(), asks) ||
                     std::any_of(weights_.begin(), weights_.end(), asks);
  std::vector<std::int64_t> key{graph, std::count_if(weights_.begin(), weights_.end(), asks)};
  for (const at::Tensor& input : inputs) {
    key.insert(key.end(),
               {asks(input), static_cast<std::int64_t>(input.scalar_type()), input.dim()});
    key.insert(key.end(), input.sizes().begin(), input.sizes().end());
  }
  Kind& kind = kinds_[key];
  kind.last = ++calls_;
  if (++kind.calls == 1) return network_(inputs);

  const std::shared_ptr<Recording> recording = free_recording(kind, inputs, graph);
  if (!recording) return network_(inputs);
  refresh_();
  {
    const at::NoGradGuard no_grad;
    for (std::size_t i = 0; i < inputs.size(); ++i) recording->inputs[i].copy_(inputs[i]);
  }
  ++g_replays;
  if (!graph) {
    recording->forward.replay();
    return recording->output.clone();
  }
  std::vector<at::Tensor> tensors = inputs;
  tensors.insert(tensors.end(), weights_.begin(), weights_.end());
  return RecordedCall::apply(recording, at::TensorList(tensors));
}

#endif

}  // namespace tiltflow
