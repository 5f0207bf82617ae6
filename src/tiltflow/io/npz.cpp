#include "tiltflow/io/npz.h"

#include <deque>

#include "tiltflow/base/error.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/io/zip_archive.h"
#include "tiltflow/tensor/aten.h"

namespace tiltflow {
namespace {

const char* type_code(const at::Tensor& x) {
  switch (x.scalar_type()) {
    case at::kByte: return "|u1";
    case at::kInt: return "<i4";
    case at::kLong: return "<i8";
    case at::kFloat: return "<f4";
    case at::kDouble: return "<f8";
    default: fail(ErrorKind::kFailure, cat("npz has no type for ", toString(x.scalar_type())));
  }
}

// Format 1.0: magic, version, header length, a Python dictionary padded so that the data begin at a multiple of 64.
std::string npy_header(const at::Tensor& x) {
  std::string shape;
  for (const std::int64_t size : x.sizes()) shape += cat(size, ",");
  std::string text = cat("{'descr': '", type_code(x), "', 'fortran_order': False, 'shape': (", shape, "), }");
  text.append(63 - (10 + text.size()) % 64, ' ');
  text += '\n';
  std::string out("\x93NUMPY\x01\x00", 8);
  out += static_cast<char>(text.size() & 0xff);
  out += static_cast<char>(text.size() >> 8);
  return out + text;
}

}  // namespace

void write_npz(const std::filesystem::path& path, const ParameterSet& arrays) {
  std::deque<std::string> files;  // alive until written
  std::vector<ZipPiece> pieces;
  for (const auto& [name, tensor] : arrays) {
    const at::Tensor x = tensor.contiguous().cpu();
    std::string file = npy_header(x);
    file.append(static_cast<const char*>(x.data_ptr()), x.nbytes());
    files.push_back(std::move(file));
    pieces.push_back({name + ".npy", files.back()});
  }
  write_zip(path, pieces);
}

}  // namespace tiltflow
