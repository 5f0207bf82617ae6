// Instruction sets to which our kernels and those of libtorch, oneDNN and MKL can be restricted, to
// measure on one processor what another would do.
#pragma once

#include <string>
#include <vector>

namespace tiltflow {

struct InstructionSet {
  std::string name;
  // Values of ATEN_CPU_CAPABILITY (which our kernels obey as well), ONEDNN_MAX_CPU_ISA and
  // MKL_ENABLE_INSTRUCTIONS.
  std::string libtorch, onednn, mkl;
  bool available = false;  // on this processor
};
// From the least to the most: sse4, avx2, avx512, avx512_bf16. Empty on processors that are not
// x86-64.
std::vector<InstructionSet> instruction_sets();

// Sets the three variables; libraries read them when they start, so call it before libtorch is
// used, or start the program again. Returns whether anything changed. Throws kUsage for unknown
// names and for what this processor does not have.
bool restrict_environment(const std::string& name);

}  // namespace tiltflow
