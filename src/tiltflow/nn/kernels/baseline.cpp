#include "tiltflow/nn/kernels/loops.h"

namespace tiltflow::kernels {

const Kernels& baseline_kernels() {
  static const Kernels table{"baseline", kTable<float>, kTable<Bf16>};
  return table;
}

const UsableKernels& usable_kernels() {
  static const UsableKernels usable = [] {
    UsableKernels out;
    out.tables[out.count++] = &baseline_kernels();
#if defined(__x86_64__)
    const bool v4 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) out.tables[out.count++] = &v3_kernels();
    if (v4) out.tables[out.count++] = &v4_kernels();
    if (v4 && __builtin_cpu_supports("avx512bf16")) out.tables[out.count++] = &v4_bf16_kernels();
#endif
    return out;
  }();
  return usable;
}

const Kernels& kernels() { return *usable_kernels().tables[usable_kernels().count - 1]; }

}  // namespace tiltflow::kernels
