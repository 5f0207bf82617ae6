// Several processes that work on one step: sums, broadcasts and gathers over c10d: Gloo, and NCCL
// for tensors on CUDA devices when this build has it. One process needs none of it: every function
// is then the identity.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

namespace tiltflow {

struct WorldInfo {
  int rank = 0;
  int size = 1;
  int local_size = 1;  // processes on this machine
  std::string host;    // of rank 0
  std::uint16_t port = 0;
  std::string source;  // the variables that said so, "WORLD_SIZE = 2 and RANK = 0"
};
// From the environment: torchrun (RANK, WORLD_SIZE, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT),
// Slurm's srun (SLURM_PROCID, SLURM_STEP_NUM_TASKS, SLURM_NTASKS_PER_NODE), Open MPI
// (OMPI_COMM_WORLD_*). One process when nothing says otherwise. Slurm and MPI need MASTER_ADDR
// (default 127.0.0.1) and MASTER_PORT (default 29400) when they span machines. Throws kConfig for
// nonsense, and for RANK and WORLD_SIZE without MASTER_ADDR and MASTER_PORT: no launcher sets them
// so, they are left over from something else.
WorldInfo world_from_environment();

// Joins the others; waits until all are there, saying so after five seconds. Called once, before
// any work. Throws kFailure after `timeout_seconds`, kStopped on a signal.
void join_world(const WorldInfo& info, double timeout_seconds = 300);
int world_rank();
int world_size();
int world_local_size();  // processes on this machine

// True once an exchange has failed because another process is gone.
bool partner_lost();

// In place, the same on every rank: tensors are flattened into buckets of about 32 MB, one
// all-reduce each. Throws kFailure when another rank is gone.
void all_reduce_sum(const std::vector<at::Tensor>& tensors);
void broadcast_from_first(const std::vector<at::Tensor>& tensors);
// Everybody's text, by rank.
std::vector<std::string> all_gather(const std::string& text);
void barrier();

}  // namespace tiltflow
