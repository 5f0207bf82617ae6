#include "tiltflow/tensor/precision.h"

#include <sys/resource.h>

#include "tiltflow/base/error.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/tensor/aten.h"

namespace tiltflow {

MatmulPrecision parse_precision(const std::string& name) {
  if (name == "fp32") return MatmulPrecision::kFull;
  if (name == "bf16") return MatmulPrecision::kBf16;
  fail(ErrorKind::kConfig,
       cat("precision '", name, "' is unknown", did_you_mean(name, {"fp32", "bf16"})),
       "use fp32 or bf16");
}

at::Tensor linear_in(MatmulPrecision precision, const at::Tensor& x, const at::Tensor& weight,
                     const at::Tensor& bias) {
  if (precision == MatmulPrecision::kFull || x.scalar_type() != at::kFloat) {
    return at::linear(x, weight, bias);
  }
  const at::Tensor y = at::linear(x.to(at::kBFloat16), weight.to(at::kBFloat16)).to(at::kFloat);
  return bias.defined() ? y + bias : y;
}

void require_finite(const at::Tensor& tensor, const std::string& what) {
  if (!at::isfinite(tensor).all().item<bool>()) {
    fail(ErrorKind::kNonFinite, cat(what, " contains NaN or infinity"));
  }
}

double peak_memory_bytes() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<double>(usage.ru_maxrss) * 1024;
}

}  // namespace tiltflow
