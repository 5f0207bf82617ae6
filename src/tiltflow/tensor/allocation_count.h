// Counts what libtorch allocates on the CPU, for benches. Once begun it stays in place for the life
// of the process.
#pragma once

#include <cstdint>

namespace tiltflow {

struct Allocations {
  std::int64_t count = 0;
  double bytes = 0;
};
void count_allocations();          // from now on; a second call does nothing
Allocations allocations_so_far();  // since then, all threads

}  // namespace tiltflow
