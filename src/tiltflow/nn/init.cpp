#include "tiltflow/nn/init.h"

#include <cmath>

#include "tiltflow/base/hash.h"
#include "tiltflow/tensor/aten.h"

namespace tiltflow {
namespace {
std::uint32_t name_key(const std::string& name) { return static_cast<std::uint32_t>(fnv1a(name)); }
at::Tensor uniform_in(const RandomStreams& streams, const std::string& name, at::IntArrayRef shape,
                      double bound) {
  return streams.uniform(Purpose::kInit, name_key(name), 0, 1, shape)[0].mul(2 * bound).sub(bound);
}
}  // namespace

at::Tensor xavier_uniform(const RandomStreams& streams, const std::string& name,
                          at::IntArrayRef shape) {
  std::int64_t fan_in = 1;
  for (std::size_t i = 1; i < shape.size(); ++i) fan_in *= shape[i];
  return uniform_in(streams, name, shape, std::sqrt(6.0 / static_cast<double>(fan_in + shape[0])));
}

at::Tensor fan_in_uniform(const RandomStreams& streams, const std::string& name,
                          at::IntArrayRef shape, std::int64_t fan_in) {
  return uniform_in(streams, name, shape, 1 / std::sqrt(static_cast<double>(fan_in)));
}

at::Tensor normal_init(const RandomStreams& streams, const std::string& name, at::IntArrayRef shape,
                       double deviation) {
  return streams.normal(Purpose::kInit, name_key(name), 0, 0, 1, shape)[0].mul(deviation);
}

}  // namespace tiltflow
