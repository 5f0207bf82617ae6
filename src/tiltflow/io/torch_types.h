// The element types of PyTorch files, by the names they have in pickles.
#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <iterator>

namespace tiltflow {

struct TorchType {
  const char* storage;  // torch.<storage>Storage
  const char* dtype;    // torch.<dtype>
  at::ScalarType type;
};
inline constexpr TorchType kTorchTypes[] = {
    {"Double", "float64", at::kDouble}, {"Float", "float32", at::kFloat},
    {"Half", "float16", at::kHalf},     {"BFloat16", "bfloat16", at::kBFloat16},
    {"Long", "int64", at::kLong},       {"Int", "int32", at::kInt},
    {"Short", "int16", at::kShort},     {"Char", "int8", at::kChar},
    {"Byte", "uint8", at::kByte},       {"Bool", "bool", at::kBool}};

// Null when there is none.
inline const TorchType* torch_type(at::ScalarType type) {
  const auto* found = std::find_if(std::begin(kTorchTypes), std::end(kTorchTypes),
                                   [&](const TorchType& t) { return t.type == type; });
  return found == std::end(kTorchTypes) ? nullptr : found;
}

}  // namespace tiltflow
