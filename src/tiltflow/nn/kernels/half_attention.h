// Attention with bf16 products and fp32 sums (AVX512_BF16). A pair is two bf16 numbers that follow
// each other along the dimension that is summed over, in 32 bits; the right factor of a product is
// stored as rows of pairs. Queries go in panels, so that scores stay in the cache.
#pragma once

#include <immintrin.h>

#include "tiltflow/nn/kernels/loops.h"

namespace tiltflow::kernels {
namespace {

using Pair = std::uint32_t __attribute__((may_alias));

template <int Rows, int Across>
TILTFLOW_INLINE void pair_block(const Pair* a, std::int64_t a_row, std::int64_t a_column,
                                const Pair* b, std::int64_t b_row, float* c, std::int64_t c_row,
                                std::int64_t depth, bool add) {
  __m512 sum[Rows][Across];
  for (int i = 0; i < Rows; ++i) {
    for (int j = 0; j < Across; ++j) {
      sum[i][j] = add ? _mm512_loadu_ps(c + i * c_row + 16 * j) : _mm512_setzero_ps();
    }
  }
  for (std::int64_t k = 0; k < depth; ++k) {
    __m512i right[Across];
    for (int j = 0; j < Across; ++j) right[j] = _mm512_loadu_si512(b + k * b_row + 16 * j);
    for (int i = 0; i < Rows; ++i) {
      const __m512i left = _mm512_set1_epi32(static_cast<int>(a[i * a_row + k * a_column]));
      for (int j = 0; j < Across; ++j) {
        sum[i][j] = _mm512_dpbf16_ps(sum[i][j], reinterpret_cast<__m512bh>(left),
                                     reinterpret_cast<__m512bh>(right[j]));
      }
    }
  }
  for (int i = 0; i < Rows; ++i) {
    for (int j = 0; j < Across; ++j) _mm512_storeu_ps(c + i * c_row + 16 * j, sum[i][j]);
  }
}

template <int Across>
TILTFLOW_INLINE void pair_rows(const Pair* a, std::int64_t a_row, std::int64_t a_column,
                               const Pair* b, std::int64_t b_row, float* c, std::int64_t c_row,
                               std::int64_t rows, std::int64_t depth, bool add) {
  std::int64_t i = 0;
  for (; i + 8 <= rows; i += 8) {
    pair_block<8, Across>(a + i * a_row, a_row, a_column, b, b_row, c + i * c_row, c_row, depth,
                          add);
  }
  for (; i < rows; ++i) {
    pair_block<1, Across>(a + i * a_row, a_row, a_column, b, b_row, c + i * c_row, c_row, depth,
                          add);
  }
}

// c [rows, columns] = a b, or c += a b; depth counts pairs; any strides of a, columns a multiple
// of 16.
void pair_product(const Pair* a, std::int64_t a_row, std::int64_t a_column, const Pair* b,
                  std::int64_t b_row, float* c, std::int64_t c_row, std::int64_t rows,
                  std::int64_t depth, std::int64_t columns, bool add = false) {
  std::int64_t j = 0;
  for (; j + 32 <= columns; j += 32) {
    pair_rows<2>(a, a_row, a_column, b + j, b_row, c + j, c_row, rows, depth, add);
  }
  for (; j < columns; j += 16) {
    pair_rows<1>(a, a_row, a_column, b + j, b_row, c + j, c_row, rows, depth, add);
  }
}

const Pair* pairs(const Bf16* x) { return reinterpret_cast<const Pair*>(x); }

// x [t, d], rows `row` apart -> its transpose as pairs along d: [d / 2, width], zero beyond t.
void pairs_along(const Bf16* x, std::int64_t row, Pair* to, std::int64_t t, std::int64_t d,
                 std::int64_t width) {
  for (std::int64_t k = 0; k < d / 2; ++k) {
    for (std::int64_t i = t; i < width; ++i) to[k * width + i] = 0;
  }
  for (std::int64_t i = 0; i < t; ++i) {
    for (std::int64_t k = 0; k < d / 2; ++k) to[k * width + i] = pairs(x + i * row)[k];
  }
}

// x [t, d] -> pairs of neighbouring rows: [rows / 2, width], zero beyond t and d.
void pairs_across(const Bf16* x, std::int64_t row, Pair* to, std::int64_t t, std::int64_t d,
                  std::int64_t rows, std::int64_t width) {
  for (std::int64_t i = 0; i < rows; i += 2, to += width) {
    for (std::int64_t k = 0; k < width; ++k) to[k] = 0;
    if (i < t) {
      for (std::int64_t k = 0; k < d; ++k) to[k] = x[i * row + k].bits;
    }
    if (i + 1 < t) {
      for (std::int64_t k = 0; k < d; ++k) {
        to[k] |= static_cast<Pair>(x[(i + 1) * row + k].bits) << 16;
      }
    }
  }
}

TILTFLOW_INLINE __m256i rounded(const float* x) {
  return reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(_mm512_loadu_ps(x)));
}

// Two fp32 rows of n numbers (a multiple of 16) -> one row of pairs.
void interleave(const float* first, const float* second, Pair* to, std::int64_t n) {
  for (std::int64_t j = 0; j < n; j += 16) {
    const __m512i low = _mm512_cvtepu16_epi32(rounded(first + j));
    const __m512i high = _mm512_slli_epi32(_mm512_cvtepu16_epi32(rounded(second + j)), 16);
    _mm512_storeu_si512(to + j, _mm512_or_si512(low, high));
  }
}

std::int64_t half_attention_scratch(std::int64_t t, std::int64_t d) {
  const std::int64_t tp = padded(t);
  const std::int64_t dp = padded(d);
  return dp * tp + tp / 2 * dp + 2 * tp * dp + 2 * kPanel * tp + 3 * kPanel / 2 * tp +
         2 * kPanel * dp;
}

void half_attention(const Bf16* packed, Bf16* out, float* log_sum, float* scratch,
                    std::int64_t first, std::int64_t last, std::int64_t t, std::int64_t h,
                    std::int64_t d) {
  const std::int64_t tp = padded(t);
  const std::int64_t dp = padded(d);
  const std::int64_t row = 3 * h * d;
  const std::int64_t out_row = h * d;
  Pair* const keys = reinterpret_cast<Pair*>(scratch);
  Pair* const values = keys + dp / 2 * tp;
  Pair* const shares = values + tp / 2 * dp;
  float* const scores = reinterpret_cast<float*>(shares + kPanel / 2 * tp);
  float* const result = scores + kPanel * tp;
  const float factor = 1.0F / __builtin_sqrtf(static_cast<float>(d));
  for (std::int64_t s = first; s < last; ++s) {
    const Bf16* q = packed + (s / h) * t * row + (s % h) * d;
    Bf16* to = out + (s / h) * t * out_row + (s % h) * d;
    pairs_along(q + h * d, row, keys, t, d, tp);
    pairs_across(q + 2 * h * d, row, values, t, d, tp, dp);
    for (std::int64_t begin = 0; begin < t; begin += kPanel) {
      const std::int64_t n = t - begin < kPanel ? t - begin : kPanel;
      pair_product(pairs(q + begin * row), row / 2, 1, keys, tp, scores, tp, n, d / 2, tp);
      float inverse[kPanel];
      for (std::int64_t i = 0; i < n; ++i) {
        float* __restrict p = scores + i * tp;
        inverse[i] = 1.0F / exponentials(p, t, tp, factor, log_sum + s * t + begin + i);
        for (std::int64_t j = 0; j < tp; j += 16) {
          _mm256_storeu_si256(reinterpret_cast<__m256i*>(shares + i * (tp / 2) + j / 2),
                              rounded(p + j));
        }
      }
      pair_product(shares, tp / 2, 1, values, dp, result, dp, n, tp / 2, dp);
      for (std::int64_t i = 0; i < n; ++i) {
        for (std::int64_t k = 0; k < d; ++k) {
          to[(begin + i) * out_row + k] = store<Bf16>(result[i * dp + k] * inverse[i]);
        }
      }
    }
  }
}

void clear_rows(float* __restrict p, float* __restrict m, std::int64_t tp) {
  for (std::int64_t j = 0; j < tp; ++j) p[j] = m[j] = 0;
}

// A row of scores p and of products m = <g, v> becomes the softmax's shares and its slopes; the
// slopes are rounded into `slope_row`, too.
void shares_and_slopes(float* __restrict p, float* __restrict m, std::int64_t tp, float factor,
                       float log_sum, float inner, Pair* slope_row) {
  for (std::int64_t j = 0; j < tp; ++j) {
    p[j] = exp_of(p[j] * factor - log_sum);
    m[j] = p[j] * (m[j] - inner) * factor;
  }
  for (std::int64_t j = 0; j < tp; j += 16) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(slope_row + j / 2), rounded(m + j));
  }
}

void half_attention_backward(const Bf16* packed, const Bf16* out, const Bf16* g,
                             const float* log_sum, Bf16* g_packed, float* scratch,
                             std::int64_t first, std::int64_t last, std::int64_t t, std::int64_t h,
                             std::int64_t d) {
  const std::int64_t tp = padded(t);
  const std::int64_t dp = padded(d);
  const std::int64_t row = 3 * h * d;
  const std::int64_t out_row = h * d;
  Pair* const keys = reinterpret_cast<Pair*>(scratch);
  Pair* const values = keys + dp / 2 * tp;
  Pair* const key_rows = values + dp / 2 * tp;
  Pair* const shares = key_rows + tp / 2 * dp;
  Pair* const slopes = shares + kPanel / 2 * tp;
  Pair* const slope_rows = slopes + kPanel / 2 * tp;
  Pair* const query_rows = slope_rows + kPanel / 2 * tp;
  Pair* const g_rows = query_rows + kPanel / 2 * dp;
  float* const scores = reinterpret_cast<float*>(g_rows + kPanel / 2 * dp);
  float* const products = scores + kPanel * tp;
  float* const result = products + kPanel * tp;
  float* const g_keys = result + kPanel * dp;
  float* const g_values = g_keys + tp * dp;
  const float factor = 1.0F / __builtin_sqrtf(static_cast<float>(d));
  for (std::int64_t s = first; s < last; ++s) {
    const std::int64_t at = (s / h) * t * row + (s % h) * d;
    const std::int64_t out_at = (s / h) * t * out_row + (s % h) * d;
    const Bf16* q = packed + at;
    const Bf16* cotangent = g + out_at;
    const Bf16* made = out + out_at;
    pairs_along(q + h * d, row, keys, t, d, tp);
    pairs_along(q + 2 * h * d, row, values, t, d, tp);
    pairs_across(q + h * d, row, key_rows, t, d, tp, dp);
    for (std::int64_t begin = 0; begin < t; begin += kPanel) {
      const std::int64_t n = t - begin < kPanel ? t - begin : kPanel;
      const std::int64_t even = (n + 1) / 2 * 2;
      pair_product(pairs(q + begin * row), row / 2, 1, keys, tp, scores, tp, n, d / 2, tp);
      pair_product(pairs(cotangent + begin * out_row), out_row / 2, 1, values, tp, products, tp, n,
                   d / 2, tp);
      for (std::int64_t i = 0; i < even; ++i) {
        if (i == n) {  // the other half of the last pair
          clear_rows(scores + i * tp, products + i * tp, tp);
          continue;
        }
        const float inner =
            inner_product(cotangent + (begin + i) * out_row, made + (begin + i) * out_row, d);
        shares_and_slopes(scores + i * tp, products + i * tp, tp, factor,
                          log_sum[s * t + begin + i], inner, slope_rows + i * (tp / 2));
      }
      for (std::int64_t i = 0; i < even; i += 2) {
        interleave(scores + i * tp, scores + (i + 1) * tp, shares + i / 2 * tp, tp);
        interleave(products + i * tp, products + (i + 1) * tp, slopes + i / 2 * tp, tp);
      }
      pairs_across(q + begin * row, row, query_rows, n, d, even, dp);
      pairs_across(cotangent + begin * out_row, out_row, g_rows, n, d, even, dp);
      pair_product(shares, 1, tp, g_rows, dp, g_values, dp, t, even / 2, dp, begin > 0);    // P^T g
      pair_product(slopes, 1, tp, query_rows, dp, g_keys, dp, t, even / 2, dp, begin > 0);  // S^T q
      pair_product(slope_rows, tp / 2, 1, key_rows, dp, result, dp, n, tp / 2, dp);         // S k
      write_rows(result, dp, g_packed + at + begin * row, row, n, d);
    }
    write_rows(g_keys, dp, g_packed + at + h * d, row, t, d);
    write_rows(g_values, dp, g_packed + at + 2 * h * d, row, t, d);
  }
}

}  // namespace
}  // namespace tiltflow::kernels
