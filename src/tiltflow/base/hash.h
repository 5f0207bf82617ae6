// Checksums and text encodings of bytes: CRC-32C (TensorBoard records), FNV-1a (keys), base64
// (pictures in HTML).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace tiltflow {

std::uint32_t crc32c(std::string_view bytes);
std::uint64_t fnv1a(std::string_view bytes);
std::string base64(std::string_view bytes);

}  // namespace tiltflow
