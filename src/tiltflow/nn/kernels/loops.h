// The loops themselves. Every including file is compiled for another instruction set, so everything
// here is local to the file and no inline function of another header may be used.
#pragma once

#include "tiltflow/nn/kernels/kernels.h"

namespace tiltflow::kernels {
namespace {

#define TILTFLOW_INLINE inline __attribute__((always_inline))

TILTFLOW_INLINE float load(float x) { return x; }
TILTFLOW_INLINE float load(Bf16 x) {
  return __builtin_bit_cast(float, static_cast<std::uint32_t>(x.bits) << 16);
}

template <class T>
TILTFLOW_INLINE T store(float x);
template <>
TILTFLOW_INLINE float store<float>(float x) {
  return x;
}
template <>
TILTFLOW_INLINE Bf16 store<Bf16>(float x) {  // to nearest, ties to even; NaN stays NaN
  const std::uint32_t bits = __builtin_bit_cast(std::uint32_t, x);
  const std::uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return {static_cast<std::uint16_t>(x == x ? rounded : 0x7fc0u)};
}

// exp for arguments clamped to [-87, 87]: 2^k times a polynomial on [-ln2/2, ln2/2]; relative error
// 2e-7. NaN stays NaN.
TILTFLOW_INLINE float exp_of(float x) {
  x = x < -87.0F ? -87.0F : x;
  x = x > 87.0F ? 87.0F : x;
  constexpr float kShift = 12582912.0F;  // 1.5 * 2^23: adding it rounds to a whole number
  const float shifted = x * 1.44269504F + kShift;
  const float k = shifted - kShift;
  const float r = (x - k * 0.693359375F) + k * 2.12194440e-4F;
  float p = 1.0F / 720;
  p = p * r + 1.0F / 120;
  p = p * r + 1.0F / 24;
  p = p * r + 1.0F / 6;
  p = p * r + 0.5F;
  p = p * r + 1.0F;
  p = p * r + 1.0F;
  const std::uint32_t power = (__builtin_bit_cast(std::uint32_t, shifted) << 23) + 0x3f800000u;
  return p * __builtin_bit_cast(float, power);
}

constexpr float kGelu = 0.7978845608F;
constexpr float kCubic = 0.044715F;

// x sigmoid(2 u), u = sqrt(2/pi) (x + 0.044715 x^3): the tanh form of GELU.
TILTFLOW_INLINE float gelu_of(float x) {
  return x / (1.0F + exp_of(-2.0F * kGelu * (x + kCubic * x * x * x)));
}

TILTFLOW_INLINE float gelu_slope(float x) {
  const float s = 1.0F / (1.0F + exp_of(-2.0F * kGelu * (x + kCubic * x * x * x)));
  return s + x * s * (1.0F - s) * 2.0F * kGelu * (1.0F + 3.0F * kCubic * x * x);
}

template <class T>
void gelu(const T* __restrict x, T* __restrict out, std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i) out[i] = store<T>(gelu_of(load(x[i])));
}

template <class T>
void gelu_backward(const T* __restrict x, const T* __restrict g, T* __restrict gx, std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i) gx[i] = store<T>(load(g[i]) * gelu_slope(load(x[i])));
}

template <class T>
void modulated_norm(const float* x, SampleRows shift, SampleRows scale, float epsilon, T* out,
                    float* mean, float* rstd, std::int64_t n, std::int64_t t, std::int64_t c) {
  for (std::int64_t i = 0; i < n; ++i) {
    const float* __restrict a = shift.data + i * shift.stride;
    const float* __restrict b = scale.data + i * scale.stride;
    for (std::int64_t j = 0; j < t; ++j) {
      const float* __restrict row = x + (i * t + j) * c;
      T* __restrict to = out + (i * t + j) * c;
      float sum = 0;
      float square = 0;
#pragma omp simd reduction(+ : sum)
      for (std::int64_t k = 0; k < c; ++k) sum += row[k];
      const float m = sum / static_cast<float>(c);
#pragma omp simd reduction(+ : square)
      for (std::int64_t k = 0; k < c; ++k) square += (row[k] - m) * (row[k] - m);
      const float r = 1.0F / __builtin_sqrtf(square / static_cast<float>(c) + epsilon);
      for (std::int64_t k = 0; k < c; ++k) {
        to[k] = store<T>((row[k] - m) * r * (1.0F + b[k]) + a[k]);
      }
      if (mean) {
        mean[i * t + j] = m;
        rstd[i * t + j] = r;
      }
    }
  }
}

template <class T>
void modulated_norm_backward(const T* g, const float* x, SampleRows scale, const float* mean,
                             const float* rstd, float* gx, float* g_shift, float* g_scale,
                             std::int64_t g_stride, std::int64_t n, std::int64_t t,
                             std::int64_t c) {
  for (std::int64_t i = 0; i < n; ++i) {
    const float* __restrict b = scale.data + i * scale.stride;
    for (std::int64_t j = 0; j < t; ++j) {
      const std::int64_t at = (i * t + j) * c;
      const T* __restrict gr = g + at;
      const float* __restrict row = x + at;
      const float m = mean[i * t + j];
      const float r = rstd[i * t + j];
      if (g_shift) {
        float* __restrict to_shift = g_shift + i * g_stride;
        float* __restrict to_scale = g_scale + i * g_stride;
        for (std::int64_t k = 0; k < c; ++k) {
          const float v = load(gr[k]);
          to_shift[k] += v;
          to_scale[k] += v * (row[k] - m) * r;
        }
      }
      if (!gx) continue;
      float* __restrict to = gx + at;
      float sum = 0;
      float product = 0;
#pragma omp simd reduction(+ : sum, product)
      for (std::int64_t k = 0; k < c; ++k) {
        const float v = load(gr[k]) * (1.0F + b[k]);
        sum += v;
        product += v * (row[k] - m);
      }
      const float first = sum / static_cast<float>(c);
      const float second = product * r * r / static_cast<float>(c);
      for (std::int64_t k = 0; k < c; ++k) {
        to[k] = r * (load(gr[k]) * (1.0F + b[k]) - first - (row[k] - m) * second);
      }
    }
  }
}

template <class T>
void gated_sum(const float* x, SampleRows gate, const T* y, float* out, std::int64_t n,
               std::int64_t t, std::int64_t c) {
  for (std::int64_t i = 0; i < n; ++i) {
    const float* __restrict s = gate.data + i * gate.stride;
    for (std::int64_t j = 0; j < t; ++j) {
      const std::int64_t at = (i * t + j) * c;
      const float* __restrict a = x + at;
      const T* __restrict b = y + at;
      float* __restrict to = out + at;
      for (std::int64_t k = 0; k < c; ++k) to[k] = a[k] + s[k] * load(b[k]);
    }
  }
}

template <class T>
void gated_sum_backward(const float* g, SampleRows gate, const T* y, T* gy, float* g_gate,
                        std::int64_t g_stride, std::int64_t n, std::int64_t t, std::int64_t c) {
  for (std::int64_t i = 0; i < n; ++i) {
    const float* __restrict s = gate.data + i * gate.stride;
    for (std::int64_t j = 0; j < t; ++j) {
      const std::int64_t at = (i * t + j) * c;
      const float* __restrict gr = g + at;
      if (gy) {
        T* __restrict to = gy + at;
        for (std::int64_t k = 0; k < c; ++k) to[k] = store<T>(gr[k] * s[k]);
      }
      if (g_gate) {
        const T* __restrict b = y + at;
        float* __restrict to = g_gate + i * g_stride;
        for (std::int64_t k = 0; k < c; ++k) to[k] += gr[k] * load(b[k]);
      }
    }
  }
}

// ---- attention: queries go in panels, so that scores stay in the cache ----

constexpr std::int64_t kPanel = 64;  // queries; even

// One register of the target; the sums of 6 rows x 2 registers stay in registers, of which AVX2 and
// SSE have 16.
#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;  // SSE, NEON
#endif
using Vector = float __attribute__((vector_size(4 * kLanes), aligned(4)));

template <int Rows, int Across>
TILTFLOW_INLINE void product_block(const float* a, std::int64_t a_row, std::int64_t a_column,
                                   const float* b, std::int64_t b_row, float* c, std::int64_t c_row,
                                   std::int64_t depth, bool add) {
  Vector sum[Rows][Across] = {};
  if (add) {
    for (int i = 0; i < Rows; ++i) {
      for (int j = 0; j < Across; ++j) {
        sum[i][j] = *reinterpret_cast<const Vector*>(c + i * c_row + kLanes * j);
      }
    }
  }
  for (std::int64_t k = 0; k < depth; ++k) {
    Vector right[Across];
    for (int j = 0; j < Across; ++j) {
      right[j] = *reinterpret_cast<const Vector*>(b + k * b_row + kLanes * j);
    }
    for (int i = 0; i < Rows; ++i) {
      const float left = a[i * a_row + k * a_column];
      for (int j = 0; j < Across; ++j) sum[i][j] += left * right[j];
    }
  }
  for (int i = 0; i < Rows; ++i) {
    for (int j = 0; j < Across; ++j) {
      *reinterpret_cast<Vector*>(c + i * c_row + kLanes * j) = sum[i][j];
    }
  }
}

template <int Across>
TILTFLOW_INLINE void product_rows(const float* a, std::int64_t a_row, std::int64_t a_column,
                                  const float* b, std::int64_t b_row, float* c, std::int64_t c_row,
                                  std::int64_t rows, std::int64_t depth, bool add) {
  std::int64_t i = 0;
  for (; i + 6 <= rows; i += 6) {
    product_block<6, Across>(a + i * a_row, a_row, a_column, b, b_row, c + i * c_row, c_row, depth,
                             add);
  }
  if (i + 4 <= rows) {
    product_block<4, Across>(a + i * a_row, a_row, a_column, b, b_row, c + i * c_row, c_row, depth,
                             add);
    i += 4;
  }
  for (; i < rows; ++i) {
    product_block<1, Across>(a + i * a_row, a_row, a_column, b, b_row, c + i * c_row, c_row, depth,
                             add);
  }
}

// c [rows, columns] = a b, or c += a b, for any strides of a; b and c row-major, columns a multiple
// of kLanes.
void product(const float* a, std::int64_t a_row, std::int64_t a_column, const float* b,
             std::int64_t b_row, float* c, std::int64_t c_row, std::int64_t rows,
             std::int64_t depth, std::int64_t columns, bool add = false) {
  std::int64_t j = 0;
  for (; j + 2 * kLanes <= columns; j += 2 * kLanes) {
    product_rows<2>(a, a_row, a_column, b + j, b_row, c + j, c_row, rows, depth, add);
  }
  if (j < columns) {
    product_rows<1>(a, a_row, a_column, b + j, b_row, c + j, c_row, rows, depth, add);
  }
}

// [t, d] with stride `from_row` -> fp32 rows of width `width` (>= d, zero beyond), times `factor`.
template <class T>
void rows_of(const T* from, std::int64_t from_row, float* to, std::int64_t t, std::int64_t d,
             std::int64_t width, float factor) {
  for (std::int64_t i = 0; i < t; ++i) {
    for (std::int64_t k = 0; k < d; ++k) to[i * width + k] = load(from[i * from_row + k]) * factor;
    for (std::int64_t k = d; k < width; ++k) to[i * width + k] = 0;
  }
}

using Four = float __attribute__((vector_size(16), aligned(4)));

template <class T>
TILTFLOW_INLINE Four load_four(const T* from) {
  return Four{load(from[0]), load(from[1]), load(from[2]), load(from[3])};
}

// Four rows and columns of [t, d] to four rows and columns of [d, width].
template <class T>
TILTFLOW_INLINE void transpose_four(const T* from, std::int64_t from_row, float* to,
                                    std::int64_t width) {
  const Four a = load_four(from);
  const Four b = load_four(from + from_row);
  const Four c = load_four(from + 2 * from_row);
  const Four d = load_four(from + 3 * from_row);
  const Four ab_low = __builtin_shufflevector(a, b, 0, 4, 1, 5);
  const Four ab_high = __builtin_shufflevector(a, b, 2, 6, 3, 7);
  const Four cd_low = __builtin_shufflevector(c, d, 0, 4, 1, 5);
  const Four cd_high = __builtin_shufflevector(c, d, 2, 6, 3, 7);
  const auto row = [&](std::int64_t i) -> Four& {
    return *reinterpret_cast<Four*>(to + i * width);
  };
  row(0) = __builtin_shufflevector(ab_low, cd_low, 0, 1, 4, 5);
  row(1) = __builtin_shufflevector(ab_low, cd_low, 2, 3, 6, 7);
  row(2) = __builtin_shufflevector(ab_high, cd_high, 0, 1, 4, 5);
  row(3) = __builtin_shufflevector(ab_high, cd_high, 2, 3, 6, 7);
}

// The transpose: [d, width], zero beyond t. In tiles of one cache line a side.
template <class T>
void columns_of(const T* from, std::int64_t from_row, float* to, std::int64_t t, std::int64_t d,
                std::int64_t width) {
  constexpr std::int64_t kTile = 16;
  const std::int64_t whole_t = t / 4 * 4;
  const std::int64_t whole_d = d / 4 * 4;
  for (std::int64_t i = 0; i < whole_t; i += kTile) {
    const std::int64_t i_end = i + kTile < whole_t ? i + kTile : whole_t;
    for (std::int64_t k = 0; k < whole_d; k += kTile) {
      const std::int64_t k_end = k + kTile < whole_d ? k + kTile : whole_d;
      for (std::int64_t column = k; column < k_end; column += 4) {
        for (std::int64_t row = i; row < i_end; row += 4) {
          transpose_four(from + row * from_row + column, from_row, to + column * width + row,
                         width);
        }
      }
    }
  }
  for (std::int64_t k = 0; k < d; ++k) {
    for (std::int64_t i = k < whole_d ? whole_t : 0; i < t; ++i) {
      to[k * width + i] = load(from[i * from_row + k]);
    }
    for (std::int64_t i = t; i < width; ++i) to[k * width + i] = 0;
  }
}

// fp32 [t, d], rows `width` apart -> rows `row` apart.
template <class T>
void write_rows(const float* from, std::int64_t width, T* to, std::int64_t row, std::int64_t t,
                std::int64_t d) {
  for (std::int64_t i = 0; i < t; ++i) {
    for (std::int64_t k = 0; k < d; ++k) to[i * row + k] = store<T>(from[i * width + k]);
  }
}

// p = exp(factor (p - max p)) of one row; `width` (>= t) numbers, what lies beyond t counts as
// nothing. Returns the sum of p; log_sum is log sum exp(factor p) of the row that came.
TILTFLOW_INLINE float exponentials(float* __restrict p, std::int64_t t, std::int64_t width,
                                   float factor, float* log_sum) {
  for (std::int64_t j = t; j < width; ++j) p[j] = -1e30F;
  float top = p[0];
  float sum = 0;
#pragma omp simd reduction(max : top)
  for (std::int64_t j = 0; j < width; ++j) top = top < p[j] ? p[j] : top;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t j = 0; j < width; ++j) sum += p[j] = exp_of((p[j] - top) * factor);
  *log_sum = top * factor + __builtin_logf(sum);
  return sum;
}

template <class T>
TILTFLOW_INLINE float inner_product(const T* __restrict a, const T* __restrict b, std::int64_t n) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t k = 0; k < n; ++k) sum += load(a[k]) * load(b[k]);
  return sum;
}

constexpr std::int64_t in_registers(std::int64_t length) {
  return (length + kLanes - 1) / kLanes * kLanes;
}

// Floats from one row to the next: an odd number of cache lines, so that the rows of a column do
// not fall into the same few sets of the cache.
constexpr std::int64_t stride_of(std::int64_t width) {
  return width / 16 % 2 == 0 ? width + 16 : width;
}

std::int64_t attention_scratch(std::int64_t t, std::int64_t d) {
  const std::int64_t ts = stride_of(padded(t));
  const std::int64_t ds = stride_of(padded(d));
  return 2 * padded(d) * ts + 3 * t * ds + 3 * kPanel * ds + 2 * kPanel * ts;
}

template <class T>
void attention(const T* packed, T* out, float* log_sum, float* scratch, std::int64_t first,
               std::int64_t last, std::int64_t t, std::int64_t h, std::int64_t d) {
  const std::int64_t tp = in_registers(t);
  const std::int64_t dp = in_registers(d);
  const std::int64_t ts = stride_of(padded(t));
  const std::int64_t ds = stride_of(padded(d));
  const std::int64_t row = 3 * h * d;
  const std::int64_t out_row = h * d;
  float* const keys = scratch;
  float* const values = keys + dp * ts;
  float* const queries = values + t * ds;
  float* const scores = queries + kPanel * ds;
  float* const result = scores + kPanel * ts;
  const float factor = 1.0F / __builtin_sqrtf(static_cast<float>(d));
  for (std::int64_t s = first; s < last; ++s) {
    const T* q = packed + (s / h) * t * row + (s % h) * d;
    T* to = out + (s / h) * t * out_row + (s % h) * d;
    columns_of(q + h * d, row, keys, t, d, ts);
    rows_of(q + 2 * h * d, row, values, t, d, ds, 1.0F);
    for (std::int64_t begin = 0; begin < t; begin += kPanel) {
      const std::int64_t n = t - begin < kPanel ? t - begin : kPanel;
      rows_of(q + begin * row, row, queries, n, d, ds, 1.0F);
      product(queries, ds, 1, keys, ts, scores, ts, n, d, tp);
      float inverse[kPanel];
      for (std::int64_t i = 0; i < n; ++i) {
        inverse[i] =
            1.0F / exponentials(scores + i * ts, t, tp, factor, log_sum + s * t + begin + i);
      }
      product(scores, ts, 1, values, ds, result, ds, n, t, dp);
      for (std::int64_t i = 0; i < n; ++i) {
        for (std::int64_t k = 0; k < d; ++k) {
          to[(begin + i) * out_row + k] = store<T>(result[i * ds + k] * inverse[i]);
        }
      }
    }
  }
}

template <class T>
void attention_backward(const T* packed, const T* out, const T* g, const float* log_sum,
                        T* g_packed, float* scratch, std::int64_t first, std::int64_t last,
                        std::int64_t t, std::int64_t h, std::int64_t d) {
  const std::int64_t tp = in_registers(t);
  const std::int64_t dp = in_registers(d);
  const std::int64_t ts = stride_of(padded(t));
  const std::int64_t ds = stride_of(padded(d));
  const std::int64_t row = 3 * h * d;
  const std::int64_t out_row = h * d;
  float* const keys = scratch;
  float* const values = keys + dp * ts;
  float* const key_rows = values + dp * ts;
  float* const g_keys = key_rows + t * ds;
  float* const g_values = g_keys + t * ds;
  float* const queries = g_values + t * ds;
  float* const cotangent = queries + kPanel * ds;
  float* const result = cotangent + kPanel * ds;
  float* const scores = result + kPanel * ds;
  float* const slopes = scores + kPanel * ts;
  const float factor = 1.0F / __builtin_sqrtf(static_cast<float>(d));
  for (std::int64_t s = first; s < last; ++s) {
    const std::int64_t at = (s / h) * t * row + (s % h) * d;
    const std::int64_t out_at = (s / h) * t * out_row + (s % h) * d;
    const T* q = packed + at;
    columns_of(q + h * d, row, keys, t, d, ts);
    rows_of(q + h * d, row, key_rows, t, d, ds, factor);
    columns_of(q + 2 * h * d, row, values, t, d, ts);
    for (std::int64_t begin = 0; begin < t; begin += kPanel) {
      const std::int64_t n = t - begin < kPanel ? t - begin : kPanel;
      const T* gr = g + out_at + begin * out_row;
      rows_of(q + begin * row, row, queries, n, d, ds, factor);
      rows_of(gr, out_row, cotangent, n, d, ds, 1.0F);
      product(queries, ds, 1, keys, ts, scores, ts, n, d, tp);
      product(cotangent, ds, 1, values, ts, slopes, ts, n, d, tp);  // g V^T
      for (std::int64_t i = 0; i < n; ++i) {
        float* __restrict p = scores + i * ts;
        float* __restrict m = slopes + i * ts;
        const float l = log_sum[s * t + begin + i];
        const float inner =
            inner_product(gr + i * out_row, out + out_at + (begin + i) * out_row, d);
        for (std::int64_t j = 0; j < tp; ++j) {
          p[j] = exp_of(p[j] - l);
          m[j] = p[j] * (m[j] - inner);
        }
      }
      product(scores, 1, ts, cotangent, ds, g_values, ds, t, n, dp, begin > 0);  // P^T g
      product(slopes, 1, ts, queries, ds, g_keys, ds, t, n, dp, begin > 0);
      product(slopes, ts, 1, key_rows, ds, result, ds, n, t, dp);
      write_rows(result, ds, g_packed + at + begin * row, row, n, d);
    }
    write_rows(g_keys, ds, g_packed + at + h * d, row, t, d);
    write_rows(g_values, ds, g_packed + at + 2 * h * d, row, t, d);
  }
}

template <class T>
constexpr Table<T> kTable{gelu<T>,
                          gelu_backward<T>,
                          modulated_norm<T>,
                          modulated_norm_backward<T>,
                          gated_sum<T>,
                          gated_sum_backward<T>,
                          attention<T>,
                          attention_backward<T>,
                          columns_of<T>,
                          attention_scratch,
                          1024,
                          1};

}  // namespace
}  // namespace tiltflow::kernels
