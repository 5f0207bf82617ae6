#include "tiltflow/nn/fused.h"

#include <ATen/Parallel.h>
#include <torch/csrc/autograd/custom_function.h>

#include <mutex>
#include <set>
#include <thread>

#include "tiltflow/base/error.h"
#include "tiltflow/nn/fused_cuda.h"
#include "tiltflow/nn/fused_parts.h"
#include "tiltflow/nn/kernels/kernels.h"
#include "tiltflow/nn/ways.h"
#include "tiltflow/tensor/aten.h"

namespace tiltflow::fused {
namespace {

using kernels::Bf16;
using kernels::SampleRows;
using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

const Bf16* half_data(const at::Tensor& x) { return static_cast<const Bf16*>(x.const_data_ptr()); }
Bf16* half_out(const at::Tensor& x) { return static_cast<Bf16*>(x.data_ptr()); }

// One row a sample, perhaps a piece of wider rows.
SampleRows rows(const at::Tensor& x) {
  return {x.const_data_ptr<float>(), x.size(0) == 1 ? 0 : x.stride(0)};
}
at::Tensor as_rows(const at::Tensor& x) { return x.stride(1) == 1 ? x : x.contiguous(); }

struct Shape {
  std::int64_t n, t, c;
};
Shape shape_of(const at::Tensor& x, const at::Tensor& row) {
  const Shape s{x.size(0), x.size(1), x.size(2)};
  if (x.dim() != 3 || row.dim() != 2 || row.size(1) != s.c ||
      (row.size(0) != 1 && row.size(0) != s.n) || row.scalar_type() != at::kFloat) {
    fail(ErrorKind::kFailure, "fused kernels: one fp32 row per sample is expected");
  }
  return s;
}

SampleRows from(const SampleRows& rows, std::int64_t sample) {
  return {rows.data + sample * rows.stride, rows.stride};
}

// work(first sample, first token, samples, tokens) over [n, t]: at once, or with several libtorch
// threads in pieces of the tokens of one sample.
template <class Work>
void over_tokens(std::int64_t n, std::int64_t t, const Work& work) {
  if (at::get_num_threads() == 1 || at::in_parallel_region()) return work(0, 0, n, t);
  for (std::int64_t i = 0; i < n; ++i) {
    at::parallel_for(0, t, 16,
                     [&](std::int64_t begin, std::int64_t end) { work(i, begin, 1, end - begin); });
  }
}

struct ModulatedNorm : Function<ModulatedNorm> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x_in,
                            const at::Tensor& shift_in, const at::Tensor& scale_in,
                            at::ScalarType type) {
    const at::Tensor x = x_in.contiguous();
    const at::Tensor shift = as_rows(shift_in);
    const at::Tensor scale = as_rows(scale_in);
    const auto [n, t, c] = shape_of(x, scale);
    if constexpr (cuda::kBuilt) {
      if (x.is_cuda()) {
        const cuda::Normed made = cuda::modulated_norm(x, shift, scale, 1e-6F, type);
        context->save_for_backward({x, scale, made.mean, made.rstd});
        return made.out;
      }
    }
    const at::Tensor out = at::empty(x.sizes(), x.options().dtype(type));
    const at::Tensor mean = at::empty({n, t}, x.options());
    const at::Tensor rstd = at::empty({n, t}, x.options());
    float* m = mean.data_ptr<float>();
    float* r = rstd.data_ptr<float>();
    const float* in = x.const_data_ptr<float>();
    const SampleRows a = rows(shift);
    const SampleRows b = rows(scale);
    over_tokens(n, t,
                [&, t = t, c = c](std::int64_t i, std::int64_t j, std::int64_t samples,
                                  std::int64_t tokens) {
                  const std::int64_t row = i * t + j;
                  if (half(out)) {
                    kernels::kernels().half.modulated_norm(in + row * c, from(a, i), from(b, i),
                                                           1e-6F, half_out(out) + row * c, m + row,
                                                           r + row, samples, tokens, c);
                  } else {
                    kernels::kernels().full.modulated_norm(in + row * c, from(a, i), from(b, i),
                                                           1e-6F, out.data_ptr<float>() + row * c,
                                                           m + row, r + row, samples, tokens, c);
                  }
                });
    context->save_for_backward({x, scale, mean, rstd});
    return out;
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    once_differentiable();
    const variable_list saved = context->get_saved_variables();
    const at::Tensor& x = saved[0];
    const at::Tensor& scale = saved[1];
    const at::Tensor g = gradients[0].contiguous();
    const auto [n, t, c] = shape_of(x, scale);
    const bool modulation = context->needs_input_grad(1) || context->needs_input_grad(2);
    if constexpr (cuda::kBuilt) {
      if (x.is_cuda()) {
        const cuda::NormGradients made = cuda::modulated_norm_backward(
            g, x, scale, saved[2], saved[3], context->needs_input_grad(0), modulation);
        return {made.x, made.shift, made.scale, at::Tensor()};
      }
    }
    const at::Tensor gx = context->needs_input_grad(0) ? at::empty_like(x) : at::Tensor();
    const at::Tensor g_shift =
        modulation ? at::zeros({scale.size(0), c}, x.options()) : at::Tensor();
    const at::Tensor g_scale = modulation ? at::zeros_like(g_shift) : at::Tensor();
    const std::int64_t stride = scale.size(0) == 1 ? 0 : c;
    const auto data = [](const at::Tensor& v) {
      return v.defined() ? v.data_ptr<float>() : nullptr;
    };
    const float* in = x.const_data_ptr<float>();
    const float* m = saved[2].const_data_ptr<float>();
    const float* r = saved[3].const_data_ptr<float>();
    const SampleRows b = rows(scale);
    const auto work = [&, t = t, c = c](std::int64_t i, std::int64_t j, std::int64_t samples,
                                        std::int64_t tokens) {
      const std::int64_t row = i * t + j;
      float* to = gx.defined() ? data(gx) + row * c : nullptr;
      if (half(g)) {
        kernels::kernels().half.modulated_norm_backward(
            half_data(g) + row * c, in + row * c, from(b, i), m + row, r + row, to, data(g_shift),
            data(g_scale), stride, samples, tokens, c);
      } else {
        kernels::kernels().full.modulated_norm_backward(
            g.const_data_ptr<float>() + row * c, in + row * c, from(b, i), m + row, r + row, to,
            data(g_shift), data(g_scale), stride, samples, tokens, c);
      }
    };
    if (modulation) {
      work(0, 0, n, t);  // sums over the tokens
    } else {
      over_tokens(n, t, work);
    }
    return {gx, g_shift, g_scale, at::Tensor()};
  }
};

struct GatedSum : Function<GatedSum> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x_in,
                            const at::Tensor& gate_in, const at::Tensor& y_in) {
    const at::Tensor x = x_in.contiguous();
    const at::Tensor gate = as_rows(gate_in);
    const at::Tensor y = y_in.contiguous();
    const auto [n, t, c] = shape_of(x, gate);
    context->save_for_backward({gate, y});
    if constexpr (cuda::kBuilt) {
      if (x.is_cuda()) return cuda::gated_sum(x, gate, y);
    }
    const at::Tensor out = at::empty_like(x);
    const float* in = x.const_data_ptr<float>();
    float* to = out.data_ptr<float>();
    const SampleRows g = rows(gate);
    over_tokens(n, t,
                [&, t = t, c = c](std::int64_t i, std::int64_t j, std::int64_t samples,
                                  std::int64_t tokens) {
                  const std::int64_t at = (i * t + j) * c;
                  if (half(y)) {
                    kernels::kernels().half.gated_sum(in + at, from(g, i), half_data(y) + at,
                                                      to + at, samples, tokens, c);
                  } else {
                    kernels::kernels().full.gated_sum(in + at, from(g, i),
                                                      y.const_data_ptr<float>() + at, to + at,
                                                      samples, tokens, c);
                  }
                });
    return out;
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    once_differentiable();
    const variable_list saved = context->get_saved_variables();
    const at::Tensor& gate = saved[0];
    const at::Tensor& y = saved[1];
    const at::Tensor g = gradients[0].contiguous();
    const auto [n, t, c] = shape_of(g, gate);
    if constexpr (cuda::kBuilt) {
      if (g.is_cuda()) {
        const cuda::GateGradients made = cuda::gated_sum_backward(
            g, gate, y, context->needs_input_grad(1), context->needs_input_grad(2));
        return {gradients[0], made.gate, made.y};
      }
    }
    const at::Tensor gy = context->needs_input_grad(2) ? at::empty_like(y) : at::Tensor();
    const at::Tensor g_gate =
        context->needs_input_grad(1) ? at::zeros({gate.size(0), c}, g.options()) : at::Tensor();
    const std::int64_t stride = gate.size(0) == 1 ? 0 : c;
    float* to_gate = g_gate.defined() ? g_gate.data_ptr<float>() : nullptr;
    const SampleRows factor = rows(gate);
    const auto work = [&, t = t, c = c](std::int64_t i, std::int64_t j, std::int64_t samples,
                                        std::int64_t tokens) {
      const std::int64_t at = (i * t + j) * c;
      if (half(y)) {
        kernels::kernels().half.gated_sum_backward(
            g.const_data_ptr<float>() + at, from(factor, i), half_data(y) + at,
            gy.defined() ? half_out(gy) + at : nullptr, to_gate, stride, samples, tokens, c);
      } else {
        kernels::kernels().full.gated_sum_backward(
            g.const_data_ptr<float>() + at, from(factor, i), y.const_data_ptr<float>() + at,
            gy.defined() ? gy.data_ptr<float>() + at : nullptr, to_gate, stride, samples, tokens,
            c);
      }
    };
    if (to_gate) {
      work(0, 0, n, t);  // sums over the tokens
    } else {
      over_tokens(n, t, work);
    }
    return {gradients[0], g_gate, gy};
  }
};

// On GPUs: a gated sum and the modulated norm of it.
struct GatedNorm : Function<GatedNorm> {
  static variable_list forward(AutogradContext* context, const at::Tensor& x_in,
                               const at::Tensor& gate, const at::Tensor& y_in,
                               const at::Tensor& shift, const at::Tensor& scale) {
    const at::Tensor x = x_in.contiguous();
    const at::Tensor y = y_in.contiguous();
    shape_of(x, gate);
    shape_of(x, shift);
    shape_of(x, scale);
    if constexpr (cuda::kBuilt) {
      const cuda::GatedNormed made =
          cuda::gated_norm(x, gate, y, shift, scale, 1e-6F, y.scalar_type());
      context->save_for_backward({made.sum, gate, y, scale, made.normed.mean, made.normed.rstd});
      return {made.sum, made.normed.out};
    }
    fail(ErrorKind::kFailure, "this program was built without CUDA");
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    once_differentiable();
    const variable_list saved = context->get_saved_variables();
    if constexpr (cuda::kBuilt) {
      const bool rows = context->needs_input_grad(1) || context->needs_input_grad(3) ||
                        context->needs_input_grad(4);
      const cuda::GatedNormGradients made =
          cuda::gated_norm_backward(gradients[0].contiguous(), gradients[1].contiguous(), saved[0],
                                    saved[1], saved[2], saved[3], saved[4], saved[5], rows);
      return {made.x, made.gate, made.y, made.shift, made.scale};
    }
    fail(ErrorKind::kFailure, "this program was built without CUDA");
  }
};

// work(begin, count) over n numbers, likewise.
template <class Work>
void over_numbers(std::int64_t n, const Work& work) {
  at::parallel_for(0, n, 1 << 14,
                   [&](std::int64_t begin, std::int64_t end) { work(begin, end - begin); });
}

struct Gelu : Function<Gelu> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x_in) {
    const at::Tensor x = x_in.contiguous();
    const at::Tensor out = at::empty_like(x);
    over_numbers(x.numel(), [&](std::int64_t begin, std::int64_t n) {
      if (half(x)) {
        kernels::kernels().half.gelu(half_data(x) + begin, half_out(out) + begin, n);
      } else {
        kernels::kernels().full.gelu(x.const_data_ptr<float>() + begin,
                                     out.data_ptr<float>() + begin, n);
      }
    });
    context->save_for_backward({x});
    return out;
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    once_differentiable();
    const at::Tensor x = context->get_saved_variables()[0];
    const at::Tensor g = gradients[0].contiguous();
    const at::Tensor gx = at::empty_like(x);
    over_numbers(x.numel(), [&](std::int64_t begin, std::int64_t n) {
      if (half(x)) {
        kernels::kernels().half.gelu_backward(half_data(x) + begin, half_data(g) + begin,
                                              half_out(gx) + begin, n);
      } else {
        kernels::kernels().full.gelu_backward(x.const_data_ptr<float>() + begin,
                                              g.const_data_ptr<float>() + begin,
                                              gx.data_ptr<float>() + begin, n);
      }
    });
    return {gx};
  }
};

}  // namespace

void once_differentiable() {
  if (at::GradMode::is_enabled()) {
    fail(ErrorKind::kFailure, "fused kernels have no second derivatives",
         "set compute.kernels = \"plain\"");
  }
}

bool takes(const at::Tensor& x) {
  return x.scalar_type() == at::kFloat &&
         (x.device().is_cpu() || (cuda::kBuilt && x.is_cuda() && x.size(-1) % 4 == 0));
}

at::Tensor modulated_norm(const at::Tensor& x, const at::Tensor& shift, const at::Tensor& scale,
                          at::ScalarType out) {
  if (x.device().is_cpu() && ways().pass(out == at::kBFloat16, Pass::kNorm) == PassWay::kLibrary) {
    const at::Tensor normed = at::layer_norm(x, {x.size(-1)}, {}, {}, 1e-6);
    return at::addcmul(shift.unsqueeze(1), normed, scale.unsqueeze(1) + 1).to(out);
  }
  return ModulatedNorm::apply(x, shift, scale, out);
}
at::Tensor gated_sum(const at::Tensor& x, const at::Tensor& gate, const at::Tensor& y) {
  return GatedSum::apply(x, gate, y);
}
GatedNormed gated_norm(const at::Tensor& x, const at::Tensor& gate, const at::Tensor& y,
                       const at::Tensor& shift, const at::Tensor& scale) {
  if (x.device().is_cpu()) {
    const at::Tensor sum = gated_sum(x, gate, y);
    return {sum, modulated_norm(sum, shift, scale, y.scalar_type())};
  }
  const variable_list made = GatedNorm::apply(x, gate, y, shift, scale);
  return {made[0], made[1]};
}
at::Tensor gelu(const at::Tensor& x) {
  const bool own = x.device().is_cpu() && ways().pass(half(x), Pass::kGelu) == PassWay::kOwn;
  return own ? Gelu::apply(x) : at::gelu(x, "tanh");
}

int threads_of_a_pass() {
  std::mutex mutex;
  std::set<std::thread::id> seen;
  at::parallel_for(0, 64, 1, [&](std::int64_t, std::int64_t) {
    const std::lock_guard lock(mutex);
    seen.insert(std::this_thread::get_id());
  });
  return static_cast<int>(seen.size());
}

}  // namespace tiltflow::fused
