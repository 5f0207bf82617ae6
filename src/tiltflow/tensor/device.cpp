#include "tiltflow/tensor/device.h"

#include <algorithm>
#include <stdexcept>

#include "tiltflow/base/error.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/tensor/aten.h"

namespace tiltflow {
namespace {
at::Device g_device(at::kCPU);
}  // namespace

at::Device compute_device() { return g_device; }

void set_compute_device(const std::string& name, int local_rank) {
  if (name == "cpu") {
    g_device = at::Device(at::kCPU);
    return;
  }
  try {
    at::Device device(name);
    if (device.is_meta()) throw std::runtime_error("it computes nothing");
    if (!device.has_index()) device = at::Device(device.type(), static_cast<at::DeviceIndex>(local_rank));
    at::ones({2}, at::TensorOptions().device(device)).sum().item<float>();  // allocates and computes
    g_device = device;
  } catch (const std::exception& error) {
    const std::string text = error.what();  // libtorch lists every backend after the first sentence
    fail(ErrorKind::kConfig, cat("device '", name, "' is not usable: ", text.substr(0, std::min(text.find('\n'), text.find(". ")))), "use cpu, or build with a libtorch for that device (see \"GPUs\" in the README)");
  }
}

at::Tensor to_compute_device(const at::Tensor& tensor) { return tensor.to(g_device); }

ParameterSet to_compute_device(const ParameterSet& tensors) {
  ParameterSet out;
  for (const auto& [name, tensor] : tensors) out.add(name, to_compute_device(tensor));
  return out;
}

at::Tensor beside(const at::Tensor& other, const at::Tensor& x) { return x.defined() ? x.to(other.device()) : x; }

}  // namespace tiltflow
