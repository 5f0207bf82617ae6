// One NumPy array as bytes of an .npy file.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <string>
#include <string_view>

namespace tiltflow {

// Header and data of format 1.0, C order. uint8, int32, int64, fp32 and fp64; throws kFailure for
// other types.
std::string npy_header(const at::Tensor& x);

// Formats 1 to 3; bool, integers, fp16, fp32, fp64 of either byte order, C or Fortran order, any
// number of dimensions. Unsigned types that libtorch hardly knows come one size wider (uint16 as
// int32, uint32 and uint64 as int64). Objects (pickles, which run code), records, text and complex
// numbers are refused. `where` stands in errors. Throws kBadFile.
at::Tensor parse_npy(std::string_view bytes, const std::string& where);
inline constexpr std::size_t kMaxNpyBytes = std::size_t{1}
                                            << 36;          // larger arrays are refused as absurd
inline constexpr std::string_view kNpyMagic = "\x93NUMPY";  // every such file begins with it

}  // namespace tiltflow
