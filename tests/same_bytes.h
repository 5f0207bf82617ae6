// Comparing what two runs have written, with a short answer: sizes, hashes and where they differ,
// never the bytes themselves.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <string>

#include "tests/support.h"
#include "tiltflow/base/file.h"
#include "tiltflow/base/hash.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/io/safetensors.h"

namespace tiltflow::test {

// The first tensor that differs in two safetensors files, given as bytes; "" when they are none or
// hold the same tensors.
inline std::string first_different_tensor(const std::string& found, const std::string& expected) {
  const TempDir dir;
  ParameterSet a, b;
  try {
    write_file_atomic(dir / "a", found);
    write_file_atomic(dir / "b", expected);
    a = read_safetensors(dir / "a").tensors;
    b = read_safetensors(dir / "b").tensors;
  } catch (const Error&) {
    return "";
  }
  for (const auto& [name, tensor] : b) {
    if (!a.contains(name)) return cat("tensor '", name, "' is missing");
    const at::Tensor& other = a.at(name);
    if (other.sizes() != tensor.sizes() || other.scalar_type() != tensor.scalar_type()) {
      return cat("tensor '", name, "' is ", shape_text(other.sizes()), ", expected ",
                 shape_text(tensor.sizes()));
    }
    if (at::equal(other, tensor)) continue;
    const at::Tensor difference = (other.to(at::kDouble) - tensor.to(at::kDouble)).abs();
    return cat("tensor '", name, "' ", shape_text(tensor.sizes()), " differs in ",
               difference.ne(0).sum().item<std::int64_t>(), " of ", tensor.numel(), " entries, by ",
               compact(difference.max().item<double>(), 3), " at most");
  }
  for (const auto& [name, tensor] : a) {
    if (!b.contains(name)) return cat("tensor '", name, "' is not expected");
  }
  return "";
}

inline std::string first_different_byte(const std::string& found, const std::string& expected) {
  const auto [at, ignored] = std::mismatch(
      found.begin(),
      found.begin() + static_cast<std::ptrdiff_t>(std::min(found.size(), expected.size())),
      expected.begin());
  const auto place = static_cast<std::size_t>(at - found.begin());
  const auto text = [place](const std::string& bytes) {  // the line around it, when it is text
    const std::size_t newline = place == 0 ? std::string::npos : bytes.rfind('\n', place - 1);
    const std::size_t begin = newline == std::string::npos ? 0 : newline + 1;
    const std::string line =
        bytes.substr(begin, std::min<std::size_t>(bytes.find('\n', begin) - begin, 100));
    return std::all_of(line.begin(), line.end(), [](unsigned char c) { return c >= 32 && c < 127; })
               ? line
               : std::string("(binary)");
  };
  return cat("first at byte ", place, ", line ", 1 + std::count(found.begin(), at, '\n'),
             ": found `", text(found), "`, expected `", text(expected), "`");
}

inline ::testing::AssertionResult same_bytes(const std::string& found,
                                             const std::string& expected) {
  if (found == expected) return ::testing::AssertionSuccess();
  const auto hash = [](const std::string& bytes) {
    return cat(bytes.size(), " bytes with hash ", fnv1a(bytes));
  };
  const std::string tensor = first_different_tensor(found, expected);
  return ::testing::AssertionFailure()
         << "found " << hash(found) << ", expected " << hash(expected) << "; "
         << (tensor.empty() ? first_different_byte(found, expected) : tensor);
}

inline ::testing::AssertionResult same_files(const std::filesystem::path& found,
                                             const std::filesystem::path& expected) {
  return same_bytes(read_file(found), read_file(expected))
         << " (" << found.string() << " beside " << expected.string() << ")";
}

}  // namespace tiltflow::test
