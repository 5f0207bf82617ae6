// Compiled with -march=x86-64-v4 on x86-64.
#include "tiltflow/nn/kernels/loops.h"

namespace tiltflow::kernels {

const Kernels& v4_kernels() {
  static const Kernels table{"x86-64-v4", kTable<float>, kTable<Bf16>};
  return table;
}

}  // namespace tiltflow::kernels
