#include "tiltflow/tensor/process_group.h"

#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>
#ifdef TILTFLOW_NCCL
#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>
#endif

#include <netdb.h>
#include <sys/socket.h>

#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <thread>

#include "tiltflow/base/descriptor.h"
#include "tiltflow/base/error.h"
#include "tiltflow/base/log.h"
#include "tiltflow/base/signals.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/tensor/aten.h"

namespace tiltflow {
namespace {

struct World {
  WorldInfo info;
  c10::intrusive_ptr<c10d::Store> store;
  c10::intrusive_ptr<c10d::Backend> group;  // Gloo: everything on the CPU
  bool partner_lost = false;
  c10::intrusive_ptr<c10d::Backend> gpus;  // NCCL, made when the first CUDA tensors come
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
      world().gpus = c10::make_intrusive<c10d::ProcessGroupNCCL>(
          c10::make_intrusive<c10d::PrefixStore>("nccl", world().store), world().info.rank,
          world().info.size, options);
    }
    return world().gpus.get();
  }
#endif
  return nullptr;
}

// Others were told to stop too, when this process was: its own signal may be a moment away.
void wait_for_own_signal() {
  for (int i = 0; i < 50 && stop_signal() == 0; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
}

// The first line without addresses of code: libtorch appends a stack trace.
std::string first_line(const std::exception& error) {
  const std::string text = error.what();
  return text.substr(0, std::min(text.find('\n'), std::size_t{160}));
}

// "[/path/of/gloo.cc:553] Connection closed by peer [127.0.0.1]:42211. This is ..." -> "Connection
// closed by peer [127.0.0.1]:42211"
std::string without_place(const std::string& text) {
  const std::size_t place = text[0] == '[' ? text.find("] ") : std::string::npos;
  const std::string rest = place == std::string::npos ? text : text.substr(place + 2);
  return rest.substr(0, rest.find(". "));
}

// Gloo's messages name sockets; what matters is that somebody left.
template <class Work>
void together(const char* what, Work work) {
  try {
    check_stop();
    work();
  } catch (const Error&) {
    throw;
  } catch (const std::exception& error) {
    world().partner_lost = true;
    wait_for_own_signal();
    check_stop();
    fail(ErrorKind::kFailure,
         cat("rank ", world().info.rank, ": ", what, " failed, another process is gone (",
             without_place(first_line(error)), ")"),
         "the message of the process that failed first says why");
  }
}

const char* variable(const char* name) {
  const char* value = std::getenv(name);
  return value && *value ? value : nullptr;
}

int number(const char* text, const char* what, int low, int high) {
  char* end = nullptr;
  const long value = std::strtol(text, &end, 10);
  if (*end || value < low || value > high) {
    fail(ErrorKind::kConfig, cat("the environment says ", what, " = '", text, "'"),
         cat("expected a number from ", low, " to ", high));
  }
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
    while (end < tensors.size() &&
           (end == begin ||
            (bytes + static_cast<std::int64_t>(tensors[end].nbytes()) <= kBucketBytes &&
             tensors[end].scalar_type() == tensors[begin].scalar_type()))) {
      bytes += static_cast<std::int64_t>(tensors[end++].nbytes());
    }
    std::vector<at::Tensor> flat;
    for (std::size_t i = begin; i < end; ++i) flat.push_back(tensors[i].detach().reshape({-1}));
    std::vector<at::Tensor> bucket{at::cat(flat)};
    c10d::Backend* gpus = between_gpus(bucket[0].device());
    if (gpus && begin == 0) {
      barrier();  // a process that is gone is noticed by Gloo; NCCL would wait for it
    }
    if (!gpus) bucket[0] = bucket[0].cpu();
    exchange(gpus ? *gpus : *world().group, bucket);
    std::int64_t offset = 0;
    for (std::size_t i = begin; i < end; ++i) {
      tensors[i].detach().copy_(
          bucket[0].narrow(0, offset, tensors[i].numel()).view(tensors[i].sizes()));
      offset += tensors[i].numel();
    }
    begin = end;
  }
}

}  // namespace

WorldInfo world_from_environment() {
  WorldInfo info;
  // Size and rank of one and the same launcher. Slurm: of the step that srun made; a batch script
  // by itself is one process.
  struct Names {
    const char *size, *rank, *local;
  };
  constexpr Names kTorchrun{"WORLD_SIZE", "RANK", "LOCAL_WORLD_SIZE"};
  constexpr Names kOthers[] = {
      {"OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"},
      {"SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_NTASKS_PER_NODE"}};
  const auto said_by = [](const Names& names) {
    return variable(names.size) && variable(names.rank);
  };
  const Names* names = said_by(kTorchrun) ? &kTorchrun : nullptr;
  for (const Names& other : kOthers) {
    if (!names && said_by(other)) names = &other;
  }
  if (!names) return info;
  info.size = number(variable(names->size), "the number of processes", 1, 100000);
  info.rank = number(variable(names->rank), "this process's rank", 0, info.size - 1);
  info.source = cat(names->size, " = ", info.size, " and ", names->rank, " = ", info.rank);
  const char* local = variable(names->local);
  info.local_size =
      local ? number(local, "the processes on this machine", 1, info.size) : info.size;
  const char* host = variable("MASTER_ADDR");
  const char* port = variable("MASTER_PORT");
  if (info.size > 1 && names == &kTorchrun && !host && !port) {
    fail(ErrorKind::kConfig,
         cat("the environment says ", info.source,
             ", but neither MASTER_ADDR nor MASTER_PORT: where the other processes are"),
         cat("to run alone: unset ", names->size, " ", names->rank,
             "; several processes: --procs N, torchrun, or set MASTER_ADDR and MASTER_PORT"));
  }
  info.host = host ? host : "127.0.0.1";
  info.port = static_cast<std::uint16_t>(port ? number(port, "MASTER_PORT", 1, 65535) : 29400);
  return info;
}

namespace {

using Clock = std::chrono::steady_clock;

// Waits in short naps, so that a stop is heard, and says once what is waited for.
class Patience {
 public:
  Patience(const WorldInfo& info, double seconds)
      : info_(info), begin_(Clock::now()), seconds_(seconds) {}

  // `missing` says what is not there yet. Throws when the time is over.
  void nap(const std::string& missing) {
    check_stop();
    const double waited = std::chrono::duration<double>(Clock::now() - begin_).count();
    if (waited > seconds_) {
      fail(ErrorKind::kFailure,
           cat("rank ", info_.rank, " of ", info_.size, ": ", missing, " after ",
               format_duration(waited)),
           hint());
    }
    if (waited > 5 && !said_) {
      said_ = true;
      log_warn(cat("rank ", info_.rank, " of ", info_.size, " waits: ", missing, "; ", hint()));
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }

 private:
  std::string hint() const {
    return cat("the environment says ", info_.source,
               ": start all of them with the same MASTER_ADDR and MASTER_PORT, or unset these "
               "variables to run alone");
  }
  const WorldInfo& info_;
  Clock::time_point begin_;
  double seconds_;
  bool said_ = false;
};

// Whether somebody listens at the address (SOCK_STREAM), or whether there is a way to it at all
// (SOCK_DGRAM sends nothing). An empty reason means yes.
std::string why_unreachable(const WorldInfo& info, int kind) {
  addrinfo wanted{};
  wanted.ai_socktype = kind;
  addrinfo* found = nullptr;
  const int failed = ::getaddrinfo(info.host.c_str(), cat(info.port).c_str(), &wanted, &found);
  if (failed != 0) return ::gai_strerror(failed);
  std::string reason = "no address";
  for (const addrinfo* each = found; each && !reason.empty(); each = each->ai_next) {
    const Descriptor socket{
        ::socket(each->ai_family, each->ai_socktype | SOCK_CLOEXEC, each->ai_protocol)};
    const bool there = socket.fd >= 0 && ::connect(socket.fd, each->ai_addr, each->ai_addrlen) == 0;
    reason = there ? "" : std::strerror(errno);
  }
  ::freeaddrinfo(found);
  return reason;
}

void meet(const WorldInfo& info, double timeout_seconds) {
  Patience patience(info, timeout_seconds);
  const std::string where = cat(info.host, ":", info.port);
  if (info.rank > 0) {
    for (std::string reason = why_unreachable(info, SOCK_STREAM); !reason.empty();
         reason = why_unreachable(info, SOCK_STREAM)) {
      patience.nap(cat("rank 0 does not answer at ", where, " (", reason, ")"));
    }
  }
  // Without this libtorch would answer with stack traces.
  if (const std::string reason = why_unreachable(info, SOCK_DGRAM); !reason.empty()) {
    fail(ErrorKind::kFailure,
         cat("rank ", info.rank, " of ", info.size, ": there is no way to ", where, ": ", reason),
         "check MASTER_ADDR, and that the network interface is up (in a container: `ip link set lo "
         "up`)");
  }
  c10d::TCPStoreOptions options;
  options.port = info.port;
  options.isServer = info.rank == 0;
  options.numWorkers = static_cast<std::size_t>(info.size);
  options.waitWorkers = false;
  options.timeout = std::chrono::milliseconds(static_cast<std::int64_t>(timeout_seconds * 1000));
  world().store = c10::make_intrusive<c10d::TCPStore>(info.host, options);
  world().store->add("tiltflow/here", 1);
  for (std::int64_t here = 0; here < info.size;) {
    here = world().store->add("tiltflow/here", 0);
    if (here < info.size) patience.nap(cat(here, " of ", info.size, " processes are at ", where));
  }
}

}  // namespace

void join_world(const WorldInfo& info, double timeout_seconds) {
  world().info = info;
  if (info.size == 1) return;
  try {
    meet(info, timeout_seconds);
    auto gloo = c10d::ProcessGroupGloo::Options::create(kPatience);
    gloo->devices.push_back(c10d::ProcessGroupGloo::createDefaultDevice());
    world().group =
        c10::make_intrusive<c10d::ProcessGroupGloo>(world().store, info.rank, info.size, gloo);
  } catch (const Error&) {
    throw;
  } catch (const std::exception& error) {
    fail(ErrorKind::kFailure,
         cat("rank ", info.rank, " of ", info.size, " could not meet the others at ", info.host,
             ":", info.port, ": ", first_line(error)),
         "check MASTER_ADDR and MASTER_PORT, and that the port is free at rank 0");
  }
}

bool partner_lost() { return world().partner_lost; }
int world_rank() { return world().info.rank; }
int world_size() { return world().info.size; }
int world_local_size() { return world().info.local_size; }

void all_reduce_sum(const std::vector<at::Tensor>& tensors) {
  if (world_size() == 1) return;
  together("all-reduce", [&] {
    in_buckets(tensors, [](c10d::Backend& group, std::vector<at::Tensor>& bucket) {
      group.allreduce(bucket)->wait();
    });
  });
}

void broadcast_from_first(const std::vector<at::Tensor>& tensors) {
  if (world_size() == 1) return;
  together("broadcast", [&] {
    in_buckets(tensors, [](c10d::Backend& group, std::vector<at::Tensor>& bucket) {
      group.broadcast(bucket)->wait();
    });
  });
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
    for (const at::Tensor& size :
         gather(at::full({1}, static_cast<std::int64_t>(text.size()), at::kLong))) {
      sizes.push_back(size.item<std::int64_t>());
      longest = std::max(longest, sizes.back());
    }
    at::Tensor bytes = at::zeros({longest}, at::kByte);
    std::memcpy(bytes.data_ptr(), text.data(), text.size());
    const std::vector<at::Tensor> all = gather(bytes);
    for (int r = 0; r < world_size(); ++r) {
      out.emplace_back(static_cast<const char*>(all[static_cast<std::size_t>(r)].data_ptr()),
                       static_cast<std::size_t>(sizes[static_cast<std::size_t>(r)]));
    }
  });
  return out;
}

void barrier() { all_gather(""); }

}  // namespace tiltflow
