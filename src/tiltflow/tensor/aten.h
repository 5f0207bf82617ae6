// The libtorch surface that source files use; precompiled. Headers include only
// <ATen/core/Tensor.h>.
#pragma once

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/variable.h>
