#include "tiltflow/nn/convolution.h"

#include "tiltflow/tensor/aten.h"

namespace tiltflow {
namespace {

template <class Convolution>
at::Tensor in_precision(MatmulPrecision precision, const at::Tensor& x, const at::Tensor& weight,
                        const at::Tensor& bias, const Convolution& convolution) {
  const at::Tensor pictures = x.contiguous(at::MemoryFormat::ChannelsLast);
  if (precision == MatmulPrecision::kFull || x.scalar_type() != at::kFloat) {
    return convolution(pictures, weight, bias);
  }
  return convolution(pictures.to(at::kBFloat16), weight.to(at::kBFloat16), bias.to(at::kBFloat16))
      .to(x.scalar_type());
}

}  // namespace

at::Tensor conv2d_in(MatmulPrecision precision, const at::Tensor& x, const at::Tensor& weight,
                     const at::Tensor& bias, std::int64_t stride, std::int64_t padding) {
  return in_precision(precision, x, weight, bias,
                      [&](const at::Tensor& in, const at::Tensor& w, const at::Tensor& b) {
                        return at::conv2d(in, w, b, stride, padding);
                      });
}

at::Tensor conv_transpose2d_in(MatmulPrecision precision, const at::Tensor& x,
                               const at::Tensor& weight, const at::Tensor& bias,
                               std::int64_t stride, std::int64_t padding) {
  return in_precision(precision, x, weight, bias,
                      [&](const at::Tensor& in, const at::Tensor& w, const at::Tensor& b) {
                        return at::conv_transpose2d(in, w, b, stride, padding);
                      });
}

}  // namespace tiltflow
