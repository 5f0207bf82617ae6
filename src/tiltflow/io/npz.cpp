#include "tiltflow/io/npz.h"

#include <algorithm>
#include <cstring>
#include <deque>
#include <optional>
#include <regex>

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

namespace {

constexpr std::size_t kMaxArray = std::size_t{1} << 31;

std::optional<at::ScalarType> type_of(std::string code) {
  if (!code.empty() && (code[0] == '<' || code[0] == '|' || code[0] == '=')) code.erase(0, 1);
  if (code == "u1") return at::kByte;
  if (code == "i4") return at::kInt;
  if (code == "i8") return at::kLong;
  if (code == "f4") return at::kFloat;
  if (code == "f8") return at::kDouble;
  return std::nullopt;
}

std::vector<std::int64_t> parse_shape(const std::string& text, const std::string& where) {
  std::vector<std::int64_t> shape;
  for (std::string number : split(text, ',')) {
    std::erase(number, ' ');
    if (number.empty()) continue;
    if (number.size() > 12 || !std::all_of(number.begin(), number.end(), [](char c) { return c >= '0' && c <= '9'; })) fail(ErrorKind::kBadFile, cat(where, ": bad shape (", text, ")"));
    shape.push_back(std::stoll(number));
  }
  if (shape.size() > 8) fail(ErrorKind::kBadFile, cat(where, ": ", shape.size(), " dimensions"));
  return shape;
}

at::Tensor parse_npy(const std::string& bytes, const std::string& where) {
  const auto bad = [&](const std::string& what) { fail(ErrorKind::kBadFile, cat(where, ": ", what)); };
  if (bytes.size() < 10 || bytes.compare(0, 6, "\x93NUMPY") != 0) bad("not a NumPy array");
  const auto byte = [&](std::size_t i) { return static_cast<std::size_t>(static_cast<unsigned char>(bytes[i])); };
  const std::size_t wide = bytes[6] == 1 ? 2 : 4;
  if (bytes[6] < 1 || bytes[6] > 3 || bytes.size() < 8 + wide) bad("unknown version of the array format");
  std::size_t length = 0;
  for (std::size_t i = 0; i < wide; ++i) length |= byte(8 + i) << (8 * i);
  const std::size_t begin = 8 + wide;
  if (length > bytes.size() - begin || length > 4096) bad("the array's header is cut off");
  const std::string header = bytes.substr(begin, length);
  static const std::regex form(R"(\s*\{\s*'descr':\s*'([^']*)',\s*'fortran_order':\s*(True|False),\s*'shape':\s*\(([^)]*)\),?\s*\}\s*)");
  std::smatch found;
  if (!std::regex_match(header, found, form)) bad("the array's header is not understood (object and record arrays are refused)");
  const auto type = type_of(found[1]);
  if (!type) bad(cat("arrays of type '", found[1].str(), "' are not read"));
  std::vector<std::int64_t> shape = parse_shape(found[3], where);
  std::size_t expected = elementSize(*type);
  for (const std::int64_t size : shape) {
    if (size > 0 && expected > kMaxArray / static_cast<std::size_t>(size)) bad("the array is absurdly large");
    expected *= static_cast<std::size_t>(size);
  }
  if (bytes.size() - begin - length != expected) bad(cat(bytes.size() - begin - length, " data bytes, the header promises ", expected));
  const bool fortran = found[2] == "True";
  if (fortran) std::reverse(shape.begin(), shape.end());
  at::Tensor out = at::empty(shape, *type);
  if (expected > 0) std::memcpy(out.data_ptr(), bytes.data() + begin + length, expected);
  if (!fortran) return out;
  std::vector<std::int64_t> reversed;
  for (std::int64_t i = out.dim(); i-- > 0;) reversed.push_back(i);
  return out.permute(reversed).contiguous();
}

}  // namespace

ParameterSet read_npz(const std::filesystem::path& path) {
  const MappedFile file(path);
  if (!looks_like_zip({reinterpret_cast<const char*>(file.data()), file.size()})) fail(ErrorKind::kBadFile, cat(path.string(), ": not an npz archive"));
  const ZipArchive archive(file, path.string());
  ParameterSet out;
  for (const std::string& name : archive.names()) {
    if (!ends_with(name, ".npy")) continue;
    out.add(name.substr(0, name.size() - 4), parse_npy(archive.read(name, kMaxArray), cat(path.string(), ": ", name)));
  }
  return out;
}

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
