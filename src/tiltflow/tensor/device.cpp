#include "tiltflow/tensor/device.h"

#include <ATen/Context.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <algorithm>
#include <cstdlib>
#include <stdexcept>

#include "tiltflow/base/error.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/tensor/aten.h"

namespace tiltflow {
namespace {
at::Device g_device(at::kCPU);

// Bit-exact resume needs sums in a fixed order; in fp32, convolutions must not fall back to TF32.
void prefer_exact_operators() {
  setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8", /*overwrite=*/0);  // read when cuBLAS starts
  at::globalContext().setDeterministicAlgorithms(true, /*warn_only=*/true);
  at::globalContext().setDeterministicFillUninitializedMemory(false);
  at::globalContext().setAllowTF32CuDNN(false);
  at::globalContext().setAllowTF32CuBLAS(false);
}

// A device's default stream cannot be recorded (nn/recorded), so the calling thread leaves it, with
// all its work; parallel_for takes its workers along.
void leave_default_stream(at::Device device) {
  const c10::impl::VirtualGuardImpl streams(device.type());
  if (streams.getStream(device) != streams.getDefaultStream(device)) return;
  streams.synchronizeDevice(device.index());
  streams.exchangeStream(streams.getStreamFromGlobalPool(device));
}

// Of a GPU; null elsewhere.
c10::DeviceAllocator* device_allocator() {
  return g_device.is_cuda() ? c10::getDeviceAllocator(g_device.type()) : nullptr;
}
}  // namespace

at::Device compute_device() { return g_device; }

void set_compute_device(const std::string& name, int local_rank) {
  if (name == "cpu") {
    g_device = at::Device(at::kCPU);
    return;
  }
  try {
    at::Device device(name);
    if (device.is_cuda()) prefer_exact_operators();
    if (device.is_meta()) throw std::runtime_error("it computes nothing");
    if (!device.has_index()) {
      device = at::Device(device.type(), static_cast<at::DeviceIndex>(local_rank));
    }
    at::ones({2}, at::TensorOptions().device(device))
        .sum()
        .item<float>();  // allocates and computes
    if (device.is_cuda()) leave_default_stream(device);
    g_device = device;
  } catch (const std::exception& error) {
    const std::string text = error.what();  // libtorch lists every backend after the first sentence
    fail(ErrorKind::kConfig,
         cat("device '", name,
             "' is not usable: ", text.substr(0, std::min(text.find('\n'), text.find(". ")))),
         "use cpu, or build with a libtorch for that device (see \"GPUs\" in the README)");
  }
}

void synchronize_compute_device() {
  if (!g_device.is_cpu()) {
    c10::impl::VirtualGuardImpl(g_device.type()).synchronizeDevice(g_device.index());
  }
}

double device_peak_bytes() {
  c10::DeviceAllocator* allocator = device_allocator();
  return allocator ? static_cast<double>(
                         allocator->getDeviceStats(g_device.index()).allocated_bytes[0].peak)
                   : 0;
}

double device_free_bytes() {
  c10::DeviceAllocator* allocator = device_allocator();
  return allocator ? static_cast<double>(allocator->getMemoryInfo(g_device.index()).first) : 0;
}

double device_total_bytes() {
  c10::DeviceAllocator* allocator = device_allocator();
  return allocator ? static_cast<double>(allocator->getMemoryInfo(g_device.index()).second) : 0;
}

at::Tensor to_compute_device(const at::Tensor& tensor) { return tensor.to(g_device); }

ParameterSet to_compute_device(const ParameterSet& tensors) {
  ParameterSet out;
  for (const auto& [name, tensor] : tensors) out.add(name, to_compute_device(tensor));
  return out;
}

at::Tensor on_device_of(const at::Tensor& other, const at::Tensor& x) {
  return x.defined() ? x.to(other.device()) : x;
}

}  // namespace tiltflow
