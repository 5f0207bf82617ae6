// Compiled with -march=x86-64-v4 -mavx512bf16 on x86-64.
#include "tiltflow/nn/kernels/loops.h"
#ifdef __AVX512BF16__
#include "tiltflow/nn/kernels/half_attention.h"
#endif

namespace tiltflow::kernels {

const Kernels& v4_bf16_kernels() {
#ifdef __AVX512BF16__
  static const Kernels table = [] {
    Kernels out{"x86-64-v4 with AVX512_BF16", kTable<float>, kTable<Bf16>};
    out.half.attention = half_attention;
    out.half.attention_backward = half_attention_backward;
    out.half.attention_scratch = half_attention_scratch;
    out.half.max_tokens = 1024;
    out.half.head_multiple = 2;
    return out;
  }();
  return table;
#else
  return v4_kernels();
#endif
}

}  // namespace tiltflow::kernels
