#include "tiltflow/nn/instruction_sets.h"

#include <cstdlib>

#include "tiltflow/base/error.h"
#include "tiltflow/base/strings.h"

namespace tiltflow {
namespace {

bool set_variable(const char* name, const std::string& value) {
  const char* before = std::getenv(name);
  if (before && before == value) return false;
  ::setenv(name, value.c_str(), 1);
  return true;
}

}  // namespace

std::vector<InstructionSet> instruction_sets() {
#if defined(__x86_64__)
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                    __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  const bool bf16 = wide && __builtin_cpu_supports("avx512bf16");
  return {{"sse4", "default", "SSE41", "SSE4_2", true},
          {"avx2", "avx2", "AVX2", "AVX2", avx2},
          {"avx512", "avx512", "AVX512_CORE", "AVX512", wide},
          {"avx512_bf16", "avx512", "AVX512_CORE_BF16", "AVX512", bf16}};
#else
  return {};
#endif
}

bool restrict_environment(const std::string& name) {
  std::vector<std::string> names;
  std::vector<std::string> here;
  for (const InstructionSet& set : instruction_sets()) {
    names.push_back(set.name);
    if (set.available) here.push_back(set.name);
    if (set.name != name || !set.available) continue;
    const bool libtorch = set_variable("ATEN_CPU_CAPABILITY", set.libtorch);
    const bool onednn = set_variable("ONEDNN_MAX_CPU_ISA", set.onednn);
    const bool mkl = set_variable("MKL_ENABLE_INSTRUCTIONS", set.mkl);
    return libtorch || onednn || mkl;
  }
  const std::string hint = here.empty() ? "instruction sets are chosen on x86-64 only"
                                        : cat("this processor has ", join(here, ", "));
  for (const std::string& known : names) {
    if (known == name) fail(ErrorKind::kUsage, cat("this processor has no ", name), hint);
  }
  fail(ErrorKind::kUsage, cat("instruction set '", name, "' is unknown", did_you_mean(name, names)),
       hint);
}

}  // namespace tiltflow
