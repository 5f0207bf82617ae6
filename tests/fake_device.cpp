#include "tests/fake_device.h"

#include <ATen/EmptyTensor.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <atomic>
#include <cstdlib>

#include "tiltflow/tensor/aten.h"

namespace tiltflow::test {
namespace {

constexpr auto kFake = c10::DeviceType::PrivateUse1;
std::atomic<std::int64_t> g_calls{0};

struct FakeAllocator final : c10::Allocator {
  c10::DataPtr allocate(std::size_t bytes) override {
    void* data = bytes > 0 ? std::malloc(bytes) : nullptr;
    return {data, data, &std::free, c10::Device(kFake, 0)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &std::free; }
  void copy_data(void* to, const void* from, std::size_t bytes) const override {
    default_copy_data(to, from, bytes);
  }
};
FakeAllocator g_allocator;
REGISTER_ALLOCATOR(kFake, &g_allocator)

struct FakeGuard final : c10::impl::NoOpDeviceGuardImpl<kFake> {
  c10::Device exchangeDevice(c10::Device) const override { return {kFake, 0}; }
  c10::Device getDevice() const override { return {kFake, 0}; }
  c10::Stream getStream(c10::Device) const noexcept override {
    return c10::Stream(c10::Stream::DEFAULT, c10::Device(kFake, 0));
  }
  c10::Stream exchangeStream(c10::Stream) const noexcept override {
    return c10::Stream(c10::Stream::DEFAULT, c10::Device(kFake, 0));
  }
  void record(void**, const c10::Stream&, const c10::DeviceIndex,
              const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, FakeGuard)

struct FakeHooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
};

// The same memory as a CPU tensor.
at::Tensor on_cpu(const at::Tensor& x) {
  if (!x.defined() || !x.device().is_privateuseone()) return x;
  return at::from_blob(const_cast<void*>(x.const_data_ptr()), x.sizes(), x.strides(),
                       x.options().device(at::kCPU).requires_grad(false));
}

at::Tensor empty(c10::IntArrayRef size, std::optional<at::ScalarType> type,
                 std::optional<at::Layout>, std::optional<at::Device>, std::optional<bool>,
                 std::optional<at::MemoryFormat> format) {
  return at::detail::empty_generic(size, &g_allocator,
                                   c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                   c10::dtype_or_default(type), format);
}
at::Tensor empty_strided(c10::IntArrayRef size, c10::IntArrayRef stride,
                         std::optional<at::ScalarType> type, std::optional<at::Layout>,
                         std::optional<at::Device>, std::optional<bool>) {
  return at::detail::empty_strided_generic(size, stride, &g_allocator,
                                           c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                           c10::dtype_or_default(type));
}
at::Tensor copy_from(const at::Tensor& self, const at::Tensor& to, bool) {
  on_cpu(to).copy_(on_cpu(self));
  return to;
}
at::Tensor copy_from_and_resize(const at::Tensor& self, const at::Tensor& to) {
  if (to.numel() != self.numel()) const_cast<at::Tensor&>(to).resize_(self.sizes());
  on_cpu(to).copy_(on_cpu(self));
  return to;
}
at::Scalar local_scalar(const at::Tensor& self) { return on_cpu(self).item(); }

at::Tensor with_shape(const at::Tensor& self, c10::IntArrayRef size, c10::IntArrayRef stride,
                      std::int64_t offset) {
  at::Tensor out = at::detail::make_tensor<c10::TensorImpl>(
      c10::TensorImpl::VIEW, c10::Storage(self.storage()), self.key_set(), self.dtype());
  out.unsafeGetTensorImpl()->set_sizes_and_strides(size, stride, offset);
  return out;
}
at::Tensor as_strided(const at::Tensor& self, c10::IntArrayRef size, c10::IntArrayRef stride,
                      std::optional<std::int64_t> offset) {
  return with_shape(self, size, stride, offset.value_or(self.storage_offset()));
}
at::Tensor view(const at::Tensor& self, c10::IntArrayRef size) {
  const at::Tensor shaped =
      at::empty_strided(self.sizes(), self.strides(), self.options().device(at::kMeta))
          .view(size);  // libtorch's own rules
  return with_shape(self, shaped.sizes(), shaped.strides(), self.storage_offset());
}
at::Tensor reshape_alias(const at::Tensor& self, c10::IntArrayRef size, c10::IntArrayRef stride) {
  return with_shape(self, size, stride, self.storage_offset());
}
const at::Tensor& resize(const at::Tensor& self, c10::IntArrayRef size,
                         std::optional<at::MemoryFormat>) {
  std::int64_t numel = 1;
  for (const std::int64_t n : size) numel *= n;
  const std::size_t bytes = static_cast<std::size_t>(numel) * self.dtype().itemsize();
  if (self.storage().nbytes() < bytes) {
    self.storage().unsafeGetStorageImpl()->set_data_ptr_noswap(g_allocator.allocate(bytes));
    self.storage().unsafeGetStorageImpl()->set_nbytes(bytes);
  }
  self.unsafeGetTensorImpl()->set_sizes_contiguous(size);
  return self;
}

void require_one_device(const std::string& name, const at::Tensor& x) {
  TORCH_CHECK(
      !x.defined() || x.dim() == 0 || x.device().is_privateuseone(), name,
      ": Expected all tensors to be on the same device, but found at least two devices, fake and ",
      x.device());
}

// Every other operator: refused when it mixes devices, as a GPU does; then computed on the CPU.
void fallback(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  ++g_calls;
  for (const c10::IValue& value : torch::jit::last(*stack, op.schema().arguments().size())) {
    if (value.isTensor()) require_one_device(op.schema().name(), value.toTensor());
    if (value.isTensorList()) {
      for (const at::Tensor& x : value.toTensorVector()) require_one_device(op.schema().name(), x);
    }
  }
  at::native::cpu_fallback(op, stack);
}

at::Tensor back(const at::Tensor& x) { return x.defined() ? x.to(c10::Device(kFake, 0)) : x; }

at::Tensor convolution(const at::Tensor& x, const at::Tensor& weight,
                       const std::optional<at::Tensor>& bias, c10::IntArrayRef stride,
                       c10::IntArrayRef padding, c10::IntArrayRef dilation, bool transposed,
                       c10::IntArrayRef output_padding, std::int64_t groups) {
  ++g_calls;
  for (const at::Tensor& one : {x, weight, bias.value_or(at::Tensor())}) {
    require_one_device("convolution", one);
  }
  return back(at::convolution(on_cpu(x), on_cpu(weight), bias ? std::optional(on_cpu(*bias)) : bias,
                              stride, padding, dilation, transposed, output_padding, groups));
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> convolution_backward(
    const at::Tensor& g, const at::Tensor& x, const at::Tensor& weight, c10::IntArrayRef stride,
    c10::IntArrayRef padding, c10::IntArrayRef dilation, bool transposed,
    c10::IntArrayRef output_padding, std::int64_t groups, std::array<bool, 3> mask) {
  ++g_calls;
  for (const at::Tensor& one : {g, x, weight}) require_one_device("convolution_backward", one);
  const auto [gx, gw, gb] = at::convolution_backward(
      on_cpu(g), on_cpu(x), on_cpu(weight),
      at::OptionalIntArrayRef(at::IntArrayRef({weight.size(transposed ? 1 : 0)})), stride, padding,
      dilation, transposed, output_padding, groups, mask);
  return {back(gx), back(gw), back(gb)};
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&fallback>());
}
TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", &empty);
  m.impl("empty_strided", &empty_strided);
  m.impl("_copy_from", &copy_from);
  m.impl("_copy_from_and_resize", &copy_from_and_resize);
  m.impl("_local_scalar_dense", &local_scalar);
  m.impl("as_strided", &as_strided);
  m.impl("view", &view);
  m.impl("_reshape_alias", &reshape_alias);
  m.impl("resize_", &resize);
  m.impl("convolution_overrideable", &convolution);
  m.impl("convolution_backward_overrideable", &convolution_backward);
}

}  // namespace

std::string fake_device() {
  static const bool named = [] {
    c10::register_privateuse1_backend("fake");
    static FakeHooks hooks;
    at::RegisterPrivateUse1HooksInterface(&hooks);
    return true;
  }();
  (void)named;
  return "fake";
}

std::int64_t fake_device_calls() { return g_calls; }

}  // namespace tiltflow::test
