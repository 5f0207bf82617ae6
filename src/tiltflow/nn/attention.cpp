#include "tiltflow/nn/attention.h"

#include <ATen/Context.h>

#include <cmath>

#include "tiltflow/base/error.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/nn/device_attention.h"
#include "tiltflow/tensor/aten.h"

namespace tiltflow {

AttentionBackend parse_attention(const std::string& name) {
  at::globalContext().setSDPUseCuDNN(false);
  if (name == "math") return AttentionBackend::kMath;
  if (name == "fused") return AttentionBackend::kFused;
  fail(ErrorKind::kConfig,
       cat("attention '", name, "' is unknown", did_you_mean(name, {"math", "fused"})),
       "use math or fused");
}

at::Tensor self_attention(const Linear& qkv, const Linear& proj, std::int64_t heads,
                          const at::Tensor& x, MatmulPrecision precision,
                          AttentionBackend backend) {
  const std::int64_t n = x.size(0);
  const std::int64_t tokens = x.size(1);
  const std::int64_t width = x.size(2);
  const std::int64_t head = width / heads;
  const std::vector<at::Tensor> packed = heads_of(apply(qkv, x, precision).contiguous(), heads);
  at::Tensor q = packed[0];
  at::Tensor k = packed[1];
  at::Tensor v = packed[2];
  if (precision == MatmulPrecision::kBf16 && x.scalar_type() == at::kFloat) {
    q = q.to(at::kBFloat16);
    k = k.to(at::kBFloat16);
    v = v.to(at::kBFloat16);
  }
  at::Tensor out;
  if (backend == AttentionBackend::kFused) {
    out = at::scaled_dot_product_attention(q, k, v);
  } else {
    const at::Tensor scores = at::matmul(q * (1 / std::sqrt(static_cast<double>(head))),
                                         k.transpose(-2, -1));  // [N, h, T, T]
    out = at::matmul(scores.softmax(-1), v);
  }
  return apply(proj, out.transpose(1, 2).reshape({n, tokens, width}).to(x.scalar_type()),
               precision);  // [N, h, T, d] -> [N, T, C]
}

}  // namespace tiltflow
