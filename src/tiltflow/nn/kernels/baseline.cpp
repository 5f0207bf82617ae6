#include "tiltflow/nn/kernels/loops.h"

namespace tiltflow::kernels {

const Kernels& baseline_kernels() {
  static const Kernels table{"baseline", kTable<float>, kTable<Bf16>};
  return table;
}

const Kernels& kernels() {
#if defined(__x86_64__)
  static const Kernels& best = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") ? v4_kernels()
                               : __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")                                                                                        ? v3_kernels()
                                                                                                                                                                                          : baseline_kernels();
  return best;
#else
  return baseline_kernels();
#endif
}

}  // namespace tiltflow::kernels
