// Where networks compute. Chains, adjoints, noise, losses, metrics and files live on the CPU in
// fp32, whatever the device; every network takes its inputs to the device of its weights and brings
// its answer back. A call moves one state per sample each way (16 KB for a latent of 4 x 32 x 32)
// against gigaflops of work; noise is the same on every device.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>

#include "tiltflow/tensor/parameters.h"

namespace tiltflow {

// Of this process: the CPU until set.
at::Device compute_device();
// "cpu", "cuda", "cuda:1", or any other device of this libtorch; `local_rank` chooses among several
// when the name has no number. Throws kConfig when it does not exist here. On GPUs fp32 is fp32 (no
// TF32) and operators are chosen that give the same bits every time, where libtorch has them; the
// calling thread works on a stream of its own.
void set_compute_device(const std::string& name, int local_rank = 0);
// Waits until the device of this process has done what it was given. Nothing to wait for on CPU.
void synchronize_compute_device();
// Of its memory, bytes: the most that tensors held at a time so far, what is free, all. 0 on CPU
// and where libtorch cannot tell.
double device_peak_bytes();
double device_free_bytes();
double device_total_bytes();
// New weights go there. The same tensors when they are there already.
at::Tensor to_compute_device(const at::Tensor& tensor);
ParameterSet to_compute_device(const ParameterSet& tensors);

// `x` on the device of `other`: itself when it is there. Differentiable; undefined stays undefined.
at::Tensor on_device_of(const at::Tensor& other, const at::Tensor& x);

}  // namespace tiltflow
