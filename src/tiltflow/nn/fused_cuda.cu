#include "tiltflow/nn/fused_cuda.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/sum.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda_bf16.h>

#include <algorithm>
#include <cstdint>
#include <utility>

namespace tiltflow::fused::cuda {
namespace {

using Half = __nv_bfloat16;

constexpr int kWarps = 4;      // rows of one block, a warp each
constexpr int kThreads = 256;  // of element-wise kernels
constexpr int kPiece = 64;     // tokens that one block adds up
constexpr int kLanes = 8;      // of them at a time

__device__ float4 load(const float* from) { return *reinterpret_cast<const float4*>(from); }
__device__ float4 load(const Half* from) {
  const uint2 bits = *reinterpret_cast<const uint2*>(from);
  const float2 a = __bfloat1622float2(reinterpret_cast<const __nv_bfloat162&>(bits.x));
  const float2 b = __bfloat1622float2(reinterpret_cast<const __nv_bfloat162&>(bits.y));
  return {a.x, a.y, b.x, b.y};
}
__device__ void store(float* to, float4 v) { *reinterpret_cast<float4*>(to) = v; }
__device__ void store(Half* to, float4 v) {
  const __nv_bfloat162 a = __floats2bfloat162_rn(v.x, v.y);
  const __nv_bfloat162 b = __floats2bfloat162_rn(v.z, v.w);
  *reinterpret_cast<uint2*>(to) = {reinterpret_cast<const unsigned&>(a),
                                   reinterpret_cast<const unsigned&>(b)};
}
__device__ float number(float v) { return v; }
__device__ float number(Half v) { return __bfloat162float(v); }

template <class F>
__device__ float4 each(float4 a, float4 b, const F& f) {
  return {f(a.x, b.x), f(a.y, b.y), f(a.z, b.z), f(a.w, b.w)};
}
__device__ float total(float4 v) { return (v.x + v.y) + (v.z + v.w); }

__device__ float warp_sum(float v) {
  for (int step = 16; step > 0; step /= 2) v += __shfl_xor_sync(0xffffffffU, v, step);
  return v;
}

// One row per sample: `data` of sample i begins at i * stride; a stride of 0 shares the row.
struct Rows {
  const float* data;
  std::int64_t stride;
};

// Of the row that the sum x + gate y takes when kGated: it is written to `sum`, then read from
// there by the thread that wrote it.
template <bool kGated, class T>
__global__ void norm_kernel(const float* __restrict__ x, Rows gate, const T* __restrict__ y,
                            float* sum, Rows shift, Rows scale, float epsilon, T* __restrict__ out,
                            float* __restrict__ mean, float* __restrict__ rstd, std::int64_t rows,
                            std::int64_t t, int c) {
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * kWarps + threadIdx.y;
  if (row >= rows) return;
  const float* a = shift.data + row / t * shift.stride;
  const float* b = scale.data + row / t * scale.stride;
  const int first = 4 * static_cast<int>(threadIdx.x);
  const float* in = x + row * c;
  float whole = 0;
  float squares = 0;
  if constexpr (kGated) {
    const float* factor = gate.data + row / t * gate.stride;
    for (int i = first; i < c; i += 128) {
      const float4 v = each(
          each(load(factor + i), load(y + row * c + i), [](float u, float w) { return u * w; }),
          load(in + i), [](float u, float w) { return u + w; });
      store(sum + row * c + i, v);
      whole += total(v);
    }
    in = sum + row * c;
  } else {
    for (int i = first; i < c; i += 128) whole += total(load(in + i));
  }
  const float m = warp_sum(whole) / static_cast<float>(c);
  for (int i = first; i < c; i += 128) {
    squares += total(each(load(in + i), {}, [m](float v, float) { return (v - m) * (v - m); }));
  }
  const float r = rsqrtf(warp_sum(squares) / static_cast<float>(c) + epsilon);
  for (int i = first; i < c; i += 128) {
    const float4 scaled =
        each(load(in + i), load(b + i), [m, r](float v, float s) { return (v - m) * r * (1 + s); });
    store(out + row * c + i, each(scaled, load(a + i), [](float v, float s) { return v + s; }));
  }
  if (threadIdx.x == 0) {
    mean[row] = m;
    rstd[row] = r;
  }
}

// gx of the norm; when kGated plus g_sum, and gy = gate gx.
template <bool kGated, class T>
__global__ void norm_backward_kernel(const T* __restrict__ g, const float* __restrict__ x,
                                     Rows scale, const float* __restrict__ mean,
                                     const float* __restrict__ rstd, float* __restrict__ gx,
                                     const float* __restrict__ g_sum, Rows gate, T* __restrict__ gy,
                                     std::int64_t rows, std::int64_t t, int c) {
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * kWarps + threadIdx.y;
  if (row >= rows) return;
  const float* b = scale.data + row / t * scale.stride;
  const float m = mean[row];
  const float r = rstd[row];
  const int first = 4 * static_cast<int>(threadIdx.x);
  const auto scaled = [&](int i) {
    return each(load(g + row * c + i), load(b + i), [](float v, float s) { return v * (1 + s); });
  };
  const auto normed = [&](int i) {
    return each(load(x + row * c + i), {}, [m, r](float v, float) { return (v - m) * r; });
  };
  float sum = 0;
  float product = 0;
  for (int i = first; i < c; i += 128) {
    const float4 h = scaled(i);
    sum += total(h);
    product += total(each(h, normed(i), [](float u, float v) { return u * v; }));
  }
  const float s = warp_sum(sum) / static_cast<float>(c);
  const float p = warp_sum(product) / static_cast<float>(c);
  for (int i = first; i < c; i += 128) {
    float4 v = each(scaled(i), normed(i), [=](float h, float u) { return r * (h - s - u * p); });
    if constexpr (kGated) {
      v = each(v, load(g_sum + row * c + i), [](float u, float w) { return u + w; });
      store(gy + row * c + i, each(v, load(gate.data + row / t * gate.stride + i),
                                   [](float u, float w) { return u * w; }));
    }
    store(gx + row * c + i, v);
  }
}

// Sums over the tokens of a piece, of g and g norm(x) (kNorm), or of x y: [n, pieces, c].
template <bool kNorm, class T>
__global__ void token_sums_kernel(const T* __restrict__ y, const float* __restrict__ x,
                                  const float* __restrict__ mean, const float* __restrict__ rstd,
                                  float* __restrict__ one, float* __restrict__ two, std::int64_t t,
                                  int c) {
  __shared__ float sums[2][kLanes][32];
  const int column = static_cast<int>(blockIdx.x) * 32 + static_cast<int>(threadIdx.x);
  const std::int64_t begin = static_cast<std::int64_t>(blockIdx.y) * kPiece;
  const std::int64_t end = min(t, begin + kPiece);
  float a = 0;
  float b = 0;
  if (column < c) {
    for (std::int64_t j = begin + threadIdx.y; j < end; j += kLanes) {
      const std::int64_t row = blockIdx.z * t + j;
      const float v = number(y[row * c + column]);
      const float u = x[row * c + column];
      if constexpr (kNorm) {
        a += v;
        b += v * (u - mean[row]) * rstd[row];
      } else {
        a += u * v;
      }
    }
  }
  sums[0][threadIdx.y][threadIdx.x] = a;
  sums[1][threadIdx.y][threadIdx.x] = b;
  __syncthreads();
  if (threadIdx.y > 0 || column >= c) return;
  for (int i = 1; i < kLanes; ++i) {
    a += sums[0][i][threadIdx.x];
    b += sums[1][i][threadIdx.x];
  }
  const std::int64_t place =
      (static_cast<std::int64_t>(blockIdx.z) * gridDim.y + blockIdx.y) * c + column;
  one[place] = a;
  if constexpr (kNorm) two[place] = b;
}

// out = gate g, or x + gate g when x is given; `fours` = n t c / 4.
template <class T, class U>
__global__ void gate_kernel(const float* __restrict__ x, Rows gate, const T* __restrict__ g,
                            U* __restrict__ out, std::int64_t fours, std::int64_t t, int c) {
  const std::int64_t place = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (place >= fours) return;
  const std::int64_t row = place / (c / 4);
  const std::int64_t column = 4 * (place % (c / 4));
  float4 v = each(load(g + 4 * place), load(gate.data + row / t * gate.stride + column),
                  [](float a, float b) { return a * b; });
  if (x) v = each(v, load(x + 4 * place), [](float a, float b) { return a + b; });
  store(out + 4 * place, v);
}

// Rows as the kernels read them, 16 bytes at a time.
at::Tensor aligned(const at::Tensor& row) {
  const bool fits = row.stride(1) == 1 && (row.size(0) == 1 || row.stride(0) % 4 == 0) &&
                    reinterpret_cast<std::uintptr_t>(row.const_data_ptr()) % 16 == 0;
  return fits ? row : row.contiguous().clone();
}
Rows rows_of(const at::Tensor& row) {
  return {row.const_data_ptr<float>(), row.size(0) == 1 ? 0 : row.stride(0)};
}

const Half* half_data(const at::Tensor& x) {
  return reinterpret_cast<const Half*>(x.const_data_ptr());
}
Half* half_out(const at::Tensor& x) { return reinterpret_cast<Half*>(x.data_ptr()); }
bool half(const at::Tensor& x) { return x.scalar_type() == at::kBFloat16; }

unsigned blocks(std::int64_t count, std::int64_t of) {
  return static_cast<unsigned>((count + of - 1) / of);
}

struct Sizes {
  std::int64_t n, t;
  int c;
};
Sizes sizes_of(const at::Tensor& x) { return {x.size(0), x.size(1), static_cast<int>(x.size(2))}; }

// The sums of token_sums_kernel, with one row for all samples when `rows` is 1.
template <bool kNorm>
std::pair<at::Tensor, at::Tensor> token_sums(const at::Tensor& y, const at::Tensor& x,
                                             const float* mean, const float* rstd,
                                             std::int64_t rows) {
  const auto [n, t, c] = sizes_of(x);
  const std::int64_t pieces = blocks(t, kPiece);
  const at::Tensor one = at::empty({n, pieces, c}, x.options());
  const at::Tensor two = kNorm ? at::empty_like(one) : at::Tensor();
  const dim3 grid(blocks(c, 32), static_cast<unsigned>(pieces), static_cast<unsigned>(n)),
      block(32, kLanes);
  const auto launch = [&, t = t, c = c](const auto* data) {
    token_sums_kernel<kNorm><<<grid, block, 0, c10::cuda::getCurrentCUDAStream()>>>(
        data, x.const_data_ptr<float>(), mean, rstd, one.data_ptr<float>(),
        kNorm ? two.data_ptr<float>() : nullptr, t, c);
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  };
  if (half(y)) {
    launch(half_data(y));
  } else {
    launch(y.const_data_ptr<float>());
  }
  const auto reduced = [&, n = n](const at::Tensor& sums) {
    if (!sums.defined()) return sums;
    if (sums.size(1) == 1 && (rows > 1 || n == 1)) return sums.squeeze(1);
    return rows == 1 && n > 1 ? at::sum(sums, at::IntArrayRef({0, 1})).unsqueeze(0)
                              : at::sum(sums, at::IntArrayRef({1}));
  };
  return {reduced(one), reduced(two)};
}

}  // namespace

namespace {

// `gated`: where the sum goes, with its gate and y; all three or none.
struct Gated {
  at::Tensor gate, y, sum;
};

Normed normed(const at::Tensor& x, const at::Tensor& shift_in, const at::Tensor& scale_in,
              float epsilon, at::ScalarType type, const Gated& gated = {}) {
  const c10::cuda::CUDAGuard guard(x.device());
  const auto [n, t, c] = sizes_of(x);
  const at::Tensor shift = aligned(shift_in);
  const at::Tensor scale = aligned(scale_in);
  Normed result{at::empty(x.sizes(), x.options().dtype(type)), at::empty({n, t}, x.options()),
                at::empty({n, t}, x.options())};
  if (x.numel() == 0) return result;
  const dim3 grid(blocks(n * t, kWarps)), block(32, kWarps);
  const auto stream = c10::cuda::getCurrentCUDAStream();
  const float* in = x.const_data_ptr<float>();
  float* mean = result.mean.data_ptr<float>();
  float* rstd = result.rstd.data_ptr<float>();
  const auto launch = [&, n = n, t = t, c = c](auto* out, const auto* y) {
    if (gated.sum.defined()) {
      norm_kernel<true><<<grid, block, 0, stream>>>(
          in, rows_of(gated.gate), y, gated.sum.data_ptr<float>(), rows_of(shift), rows_of(scale),
          epsilon, out, mean, rstd, n * t, t, c);
    } else {
      norm_kernel<false><<<grid, block, 0, stream>>>(in, Rows{}, y, nullptr, rows_of(shift),
                                                     rows_of(scale), epsilon, out, mean, rstd,
                                                     n * t, t, c);
    }
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  };
  if (half(result.out)) {
    launch(half_out(result.out), gated.y.defined() ? half_data(gated.y) : nullptr);
  } else {
    launch(result.out.data_ptr<float>(),
           gated.y.defined() ? gated.y.const_data_ptr<float>() : nullptr);
  }
  return result;
}

// `gated`: its y is written; its sum is the gradient of the sum.
at::Tensor normed_backward(const at::Tensor& g, const at::Tensor& x, const at::Tensor& scale,
                           const at::Tensor& mean, const at::Tensor& rstd,
                           const Gated& gated = {}) {
  const auto [n, t, c] = sizes_of(x);
  const at::Tensor gx = at::empty_like(x);
  if (x.numel() == 0) return gx;
  const dim3 grid(blocks(n * t, kWarps)), block(32, kWarps);
  const auto stream = c10::cuda::getCurrentCUDAStream();
  const float* in = x.const_data_ptr<float>();
  const float* m = mean.const_data_ptr<float>();
  const float* r = rstd.const_data_ptr<float>();
  const auto launch = [&, n = n, t = t, c = c](const auto* data, auto* gy) {
    if (gated.sum.defined()) {
      norm_backward_kernel<true><<<grid, block, 0, stream>>>(
          data, in, rows_of(scale), m, r, gx.data_ptr<float>(), gated.sum.const_data_ptr<float>(),
          rows_of(gated.gate), gy, n * t, t, c);
    } else {
      norm_backward_kernel<false><<<grid, block, 0, stream>>>(
          data, in, rows_of(scale), m, r, gx.data_ptr<float>(), nullptr, Rows{}, gy, n * t, t, c);
    }
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  };
  if (half(g)) {
    launch(half_data(g), gated.y.defined() ? half_out(gated.y) : nullptr);
  } else {
    launch(g.const_data_ptr<float>(), gated.y.defined() ? gated.y.data_ptr<float>() : nullptr);
  }
  return gx;
}

}  // namespace

Normed modulated_norm(const at::Tensor& x, const at::Tensor& shift, const at::Tensor& scale,
                      float epsilon, at::ScalarType type) {
  return normed(x, shift, scale, epsilon, type);
}

NormGradients modulated_norm_backward(const at::Tensor& g, const at::Tensor& x,
                                      const at::Tensor& scale_in, const at::Tensor& mean,
                                      const at::Tensor& rstd, bool of_x, bool of_rows) {
  const c10::cuda::CUDAGuard guard(x.device());
  const at::Tensor scale = aligned(scale_in);
  NormGradients result;
  if (of_x) result.x = normed_backward(g, x, scale, mean, rstd);
  if (of_rows) {
    std::tie(result.shift, result.scale) = token_sums<true>(
        g, x, mean.const_data_ptr<float>(), rstd.const_data_ptr<float>(), scale.size(0));
  }
  return result;
}

GatedNormed gated_norm(const at::Tensor& x, const at::Tensor& gate, const at::Tensor& y,
                       const at::Tensor& shift, const at::Tensor& scale, float epsilon,
                       at::ScalarType type) {
  const Gated gated{aligned(gate), y, at::empty_like(x)};
  return {gated.sum, normed(x, shift, scale, epsilon, type, gated)};
}

GatedNormGradients gated_norm_backward(const at::Tensor& g_sum, const at::Tensor& g,
                                       const at::Tensor& h, const at::Tensor& gate,
                                       const at::Tensor& y, const at::Tensor& scale,
                                       const at::Tensor& mean, const at::Tensor& rstd,
                                       bool of_rows) {
  const c10::cuda::CUDAGuard guard(h.device());
  const Gated gated{aligned(gate), at::empty_like(y), g_sum};
  GatedNormGradients result;
  result.x = normed_backward(g, h, aligned(scale), mean, rstd, gated);
  result.y = gated.y;
  if (!of_rows) return result;
  std::tie(result.shift, result.scale) = token_sums<true>(
      g, h, mean.const_data_ptr<float>(), rstd.const_data_ptr<float>(), scale.size(0));
  result.gate = token_sums<false>(y, result.x, nullptr, nullptr, gate.size(0)).first;
  return result;
}

at::Tensor gated_sum(const at::Tensor& x, const at::Tensor& gate_in, const at::Tensor& y) {
  const c10::cuda::CUDAGuard guard(x.device());
  const auto [n, t, c] = sizes_of(x);
  const at::Tensor gate = aligned(gate_in);
  const at::Tensor out = at::empty_like(x);
  if (x.numel() == 0) return out;
  const auto launch = [&, t = t, c = c](const auto* data) {
    gate_kernel<<<blocks(x.numel() / 4, kThreads), kThreads, 0,
                  c10::cuda::getCurrentCUDAStream()>>>(
        x.const_data_ptr<float>(), rows_of(gate), data, out.data_ptr<float>(), x.numel() / 4, t, c);
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  };
  if (half(y)) {
    launch(half_data(y));
  } else {
    launch(y.const_data_ptr<float>());
  }
  return out;
}

GateGradients gated_sum_backward(const at::Tensor& g, const at::Tensor& gate_in,
                                 const at::Tensor& y, bool of_gate, bool of_y) {
  const c10::cuda::CUDAGuard guard(g.device());
  const auto [n, t, c] = sizes_of(g);
  const at::Tensor gate = aligned(gate_in);
  GateGradients result;
  if (of_y) {
    result.y = at::empty_like(y);
    const auto launch = [&, t = t, c = c](auto* out) {
      gate_kernel<<<blocks(g.numel() / 4, kThreads), kThreads, 0,
                    c10::cuda::getCurrentCUDAStream()>>>(
          nullptr, rows_of(gate), g.const_data_ptr<float>(), out, g.numel() / 4, t, c);
      C10_CUDA_KERNEL_LAUNCH_CHECK();
    };
    if (half(y)) {
      launch(half_out(result.y));
    } else {
      launch(result.y.data_ptr<float>());
    }
  }
  if (of_gate) result.gate = token_sums<false>(y, g, nullptr, nullptr, gate.size(0)).first;
  return result;
}

}  // namespace tiltflow::fused::cuda
