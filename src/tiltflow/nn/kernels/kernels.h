// Loops over activations that libtorch has no single operator for, on one core. Compiled once per
// instruction set, chosen when first used. Plain pointers: shapes are checked by the callers
// (nn/fused).
#pragma once

#include <cstdint>

namespace tiltflow::kernels {

struct Bf16 {
  std::uint16_t bits;
};

// One row of width C for every sample; a stride of 0 shares the row.
struct SampleRows {
  const float* data = nullptr;
  std::int64_t stride = 0;
};

// T: fp32 or bf16 activations; sums and statistics are fp32. x, out, g, gx: [n, t, c] without gaps.
template <class T>
struct Table {
  // GELU in its tanh form, n numbers; relative error about 1e-6.
  void (*gelu)(const T* x, T* out, std::int64_t n);
  void (*gelu_backward)(const T* x, const T* g, T* gx, std::int64_t n);
  // out = norm(x) (1 + scale) + shift; mean and rstd [n t] are kept for the backward pass when
  // given.
  void (*modulated_norm)(const float* x, SampleRows shift, SampleRows scale, float epsilon, T* out,
                         float* mean, float* rstd, std::int64_t n, std::int64_t t, std::int64_t c);
  // g_shift, g_scale: [n, c], or [1, c] with g_stride = 0, added to; may be null. gx may be null.
  void (*modulated_norm_backward)(const T* g, const float* x, SampleRows scale, const float* mean,
                                  const float* rstd, float* gx, float* g_shift, float* g_scale,
                                  std::int64_t g_stride, std::int64_t n, std::int64_t t,
                                  std::int64_t c);
  // out = x + gate y
  void (*gated_sum)(const float* x, SampleRows gate, const T* y, float* out, std::int64_t n,
                    std::int64_t t, std::int64_t c);
  // gy = gate g; g_gate as g_shift above.
  void (*gated_sum_backward)(const float* g, SampleRows gate, const T* y, T* gy, float* g_gate,
                             std::int64_t g_stride, std::int64_t n, std::int64_t t, std::int64_t c);
  // softmax(q k^T / sqrt(d)) v of the heads first..last - 1 of the n h there are; packed [n, t, 3,
  // h, d], out and g [n, t, h, d]; log_sum [n, h, t] is kept for the backward pass. Sums in fp32.
  void (*attention)(const T* packed, T* out, float* log_sum, float* scratch, std::int64_t first,
                    std::int64_t last, std::int64_t t, std::int64_t h, std::int64_t d);
  void (*attention_backward)(const T* packed, const T* out, const T* g, const float* log_sum,
                             T* g_packed, float* scratch, std::int64_t first, std::int64_t last,
                             std::int64_t t, std::int64_t h, std::int64_t d);
  // [t, d] with rows `from_row` apart -> its transpose in fp32, [d, width], zero beyond t.
  void (*transpose)(const T* from, std::int64_t from_row, float* to, std::int64_t t, std::int64_t d,
                    std::int64_t width);
  std::int64_t (*attention_scratch)(std::int64_t t,
                                    std::int64_t d);  // fp32 numbers that both may use as scratch
  std::int64_t max_tokens;     // with more, libtorch's attention is as fast or takes less memory
  std::int64_t head_multiple;  // d is a multiple of it
};

static constexpr std::int64_t padded(std::int64_t length) {
  return (length + 15) / 16 * 16;
}  // static: no instruction set may lend its copy to the others

struct Kernels {
  const char* name;
  Table<float> full;
  Table<Bf16> half;
};
// One for every instruction set that this processor has and that ATEN_CPU_CAPABILITY and
// ONEDNN_MAX_CPU_ISA allow; the best is the last. (Room for all of them; the rest is null.)
struct UsableKernels {
  const Kernels* tables[4] = {};
  int count = 0;
};
const UsableKernels& usable_kernels();
const Kernels& kernels();  // the best

const Kernels& baseline_kernels();
const Kernels& v3_kernels();       // AVX2 and FMA
const Kernels& v4_kernels();       // AVX-512
const Kernels& v4_bf16_kernels();  // and AVX512_BF16

}  // namespace tiltflow::kernels
