#include <cstdlib>
#include <cstring>

#include "tiltflow/nn/kernels/loops.h"

namespace tiltflow::kernels {
namespace {

// The variables by which libtorch and oneDNN are kept from using what the processor has restrict
// our kernels as well.
bool variable_is(const char* name, const char* value) {
  const char* found = std::getenv(name);
  return found && std::strcmp(found, value) == 0;
}
bool allows_avx2() { return !variable_is("ATEN_CPU_CAPABILITY", "default"); }
bool allows_avx512() { return allows_avx2() && !variable_is("ATEN_CPU_CAPABILITY", "avx2"); }
bool allows_bf16() {
  const bool without = variable_is("ONEDNN_MAX_CPU_ISA", "AVX512_CORE") ||
                       variable_is("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_VNNI");
  return allows_avx512() && !without;
}

}  // namespace

const Kernels& baseline_kernels() {
  static const Kernels table{"baseline", kTable<float>, kTable<Bf16>};
  return table;
}

const UsableKernels& usable_kernels() {
  static const UsableKernels usable = [] {
    UsableKernels out;
    out.tables[out.count++] = &baseline_kernels();
#if defined(__x86_64__)
    const bool v4 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                    __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    if (allows_avx2() && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
      out.tables[out.count++] = &v3_kernels();
    }
    if (v4 && allows_avx512()) out.tables[out.count++] = &v4_kernels();
    if (v4 && allows_bf16() && __builtin_cpu_supports("avx512bf16")) {
      out.tables[out.count++] = &v4_bf16_kernels();
    }
#endif
    return out;
  }();
  return usable;
}

const Kernels& kernels() { return *usable_kernels().tables[usable_kernels().count - 1]; }

}  // namespace tiltflow::kernels
