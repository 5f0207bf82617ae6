#include "tiltflow/tensor/process_group.h"

#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>
#ifdef TILTFLOW_NCCL
#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>
#endif

#include <cstdlib>
#include <cstring>
#include <tuple>

#include "tiltflow/base/error.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/tensor/aten.h"

namespace tiltflow {
namespace {

struct World {
  WorldInfo info;
  c10::intrusive_ptr<c10d::Store> store;
  c10::intrusive_ptr<c10d::Backend> group;  // Gloo: everything on the CPU
  c10::intrusive_ptr<c10d::Backend> gpus;   // NCCL, made when the first CUDA tensors come
};
World& world() {
  static World instance;
  return instance;
}
constexpr std::chrono::hours kPatience(12);  // rank 0 may evaluate for long while the others wait

// Who exchanges tensors of this device; nullptr: they go through the CPU.
c10d::Backend* between_gpus([[maybe_unused]] const at::Device& device) {
#ifdef TILTFLOW_NCCL
  if (device.is_cuda()) {
    if (!world().gpus) {
      auto options = c10d::ProcessGroupNCCL::Options::create();
      options->timeout = kPatience;
      world().gpus = c10::make_intrusive<c10d::ProcessGroupNCCL>(c10::make_intrusive<c10d::PrefixStore>("nccl", world().store), world().info.rank, world().info.size, options);
    }
    return world().gpus.get();
  }
#endif
  return nullptr;
}

// Gloo's messages name sockets; what matters is that somebody left.
template <class Work>
void together(const char* what, Work work) {
  try {
    work();
  } catch (const std::exception& error) {
    const std::string text = error.what();
    fail(ErrorKind::kFailure, cat("rank ", world().info.rank, ": ", what, " failed, another process is gone: ", text.substr(0, std::min(text.find('\n'), std::size_t{160}))), "the message of the process that failed first says why");
  }
}

const char* variable(const char* name) {
  const char* value = std::getenv(name);
  return value && *value ? value : nullptr;
}

int number(const char* text, const char* what, int low, int high) {
  char* end = nullptr;
  const long value = std::strtol(text, &end, 10);
  if (*end || value < low || value > high) fail(ErrorKind::kConfig, cat("the environment says ", what, " = '", text, "'"), cat("expected a number from ", low, " to ", high));
  return static_cast<int>(value);
}

constexpr std::int64_t kBucketBytes = std::int64_t{32} << 20;

template <class Exchange>
void in_buckets(const std::vector<at::Tensor>& tensors, Exchange exchange) {
  const at::NoGradGuard no_grad;
  std::size_t begin = 0;
  while (begin < tensors.size()) {
    std::size_t end = begin;
    std::int64_t bytes = 0;
    while (end < tensors.size() && (end == begin || (bytes + static_cast<std::int64_t>(tensors[end].nbytes()) <= kBucketBytes && tensors[end].scalar_type() == tensors[begin].scalar_type()))) bytes += static_cast<std::int64_t>(tensors[end++].nbytes());
    std::vector<at::Tensor> flat;
    for (std::size_t i = begin; i < end; ++i) flat.push_back(tensors[i].detach().reshape({-1}));
    std::vector<at::Tensor> bucket{at::cat(flat)};
    c10d::Backend* gpus = between_gpus(bucket[0].device());
    if (gpus && begin == 0) barrier();  // a process that is gone is noticed by Gloo; NCCL would wait for it
    if (!gpus) bucket[0] = bucket[0].cpu();
    exchange(gpus ? *gpus : *world().group, bucket);
    std::int64_t offset = 0;
    for (std::size_t i = begin; i < end; ++i) {
      tensors[i].detach().copy_(bucket[0].narrow(0, offset, tensors[i].numel()).view(tensors[i].sizes()));
      offset += tensors[i].numel();
    }
    begin = end;
  }
}

}  // namespace

WorldInfo world_from_environment() {
  WorldInfo info;
  // Size and rank of one and the same launcher. Slurm: of the step that srun made; a batch script by itself is one process.
  const char *size = nullptr, *rank = nullptr, *local = nullptr;
  for (const auto& [a, b, c] : {std::tuple{"WORLD_SIZE", "RANK", "LOCAL_WORLD_SIZE"}, {"OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"}, {"SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_NTASKS_PER_NODE"}}) {
    if (size && rank) break;
    size = variable(a), rank = variable(b), local = variable(c);
  }
  if (!size || !rank) return info;
  info.size = number(size, "the number of processes", 1, 100000);
  info.rank = number(rank, "this process's rank", 0, info.size - 1);
  info.local_size = local ? number(local, "the processes on this machine", 1, info.size) : info.size;
  const char* host = variable("MASTER_ADDR");
  const char* port = variable("MASTER_PORT");
  info.host = host ? host : "127.0.0.1";
  info.port = static_cast<std::uint16_t>(port ? number(port, "MASTER_PORT", 1, 65535) : 29400);
  return info;
}

void join_world(const WorldInfo& info, double timeout_seconds) {
  world().info = info;
  if (info.size == 1) return;
  const auto timeout = std::chrono::milliseconds(static_cast<std::int64_t>(timeout_seconds * 1000));
  try {
    c10d::TCPStoreOptions options;
    options.port = info.port, options.isServer = info.rank == 0, options.numWorkers = static_cast<std::size_t>(info.size), options.timeout = timeout;
    world().store = c10::make_intrusive<c10d::TCPStore>(info.host, options);
    auto gloo = c10d::ProcessGroupGloo::Options::create(kPatience);
    gloo->devices.push_back(c10d::ProcessGroupGloo::createDefaultDevice());
    world().group = c10::make_intrusive<c10d::ProcessGroupGloo>(world().store, info.rank, info.size, gloo);
  } catch (const std::exception& error) {
    const std::string text = error.what();
    fail(ErrorKind::kFailure, cat("rank ", info.rank, " of ", info.size, " could not reach the others at ", info.host, ":", info.port, ": ", text.substr(0, text.find('\n'))), "check MASTER_ADDR and MASTER_PORT, and that all processes run");
  }
}

int world_rank() { return world().info.rank; }
int world_size() { return world().info.size; }
int world_local_size() { return world().info.local_size; }

void all_reduce_sum(const std::vector<at::Tensor>& tensors) {
  if (world_size() == 1) return;
  together("all-reduce", [&] { in_buckets(tensors, [](c10d::Backend& group, std::vector<at::Tensor>& bucket) { group.allreduce(bucket)->wait(); }); });
}

void broadcast_from_first(const std::vector<at::Tensor>& tensors) {
  if (world_size() == 1) return;
  together("broadcast", [&] { in_buckets(tensors, [](c10d::Backend& group, std::vector<at::Tensor>& bucket) { group.broadcast(bucket)->wait(); }); });
}

std::vector<std::string> all_gather(const std::string& text) {
  if (world_size() == 1) return {text};
  std::vector<std::string> out;
  together("gather", [&] {
    const auto gather = [&](const at::Tensor& mine) {
      std::vector<at::Tensor> one{mine};
      std::vector<std::vector<at::Tensor>> all(1);
      for (int r = 0; r < world_size(); ++r) all[0].push_back(at::empty_like(mine));
      world().group->allgather(all, one)->wait();
      return all[0];
    };
    std::int64_t longest = 1;
    std::vector<std::int64_t> sizes;
    for (const at::Tensor& size : gather(at::full({1}, static_cast<std::int64_t>(text.size()), at::kLong))) sizes.push_back(size.item<std::int64_t>()), longest = std::max(longest, sizes.back());
    at::Tensor bytes = at::zeros({longest}, at::kByte);
    std::memcpy(bytes.data_ptr(), text.data(), text.size());
    const std::vector<at::Tensor> all = gather(bytes);
    for (int r = 0; r < world_size(); ++r) out.emplace_back(static_cast<const char*>(all[static_cast<std::size_t>(r)].data_ptr()), static_cast<std::size_t>(sizes[static_cast<std::size_t>(r)]));
  });
  return out;
}

void barrier() { all_gather(""); }

}  // namespace tiltflow
