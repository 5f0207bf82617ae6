#include "tiltflow/io/npy.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <regex>
#include <string_view>

#include "tiltflow/base/error.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/tensor/aten.h"

namespace tiltflow {
namespace {

constexpr std::size_t kMaxNpyHeader = 10000;  // NumPy's own bound

struct NpyType {
  std::string_view code;  // without byte order
  at::ScalarType stored;  // of the same width
  at::ScalarType given;
};

constexpr std::array<NpyType, 12> kNpyTypes{{{"b1", at::kByte, at::kBool},
                                             {"u1", at::kByte, at::kByte},
                                             {"i1", at::kChar, at::kChar},
                                             {"i2", at::kShort, at::kShort},
                                             {"u2", at::kUInt16, at::kInt},
                                             {"i4", at::kInt, at::kInt},
                                             {"u4", at::kUInt32, at::kLong},
                                             {"i8", at::kLong, at::kLong},
                                             {"u8", at::kLong, at::kLong},
                                             {"f2", at::kHalf, at::kHalf},
                                             {"f4", at::kFloat, at::kFloat},
                                             {"f8", at::kDouble, at::kDouble}}};

// Why a type is not read, by its letter.
std::string refusal(const std::string& code) {
  const std::string_view letter =
      std::string_view(code).substr(code.find_first_of("OUSVcMm") == 1 ? 1 : 0, 1);
  if (letter == "O") {
    return "it holds Python objects, which only a pickle can restore; pickles run code and are "
           "refused";
  }
  if (letter == "U" || letter == "S") return "it holds text";
  if (letter == "c") return "it holds complex numbers";
  if (letter == "V") return "it holds records";
  if (letter == "M" || letter == "m") return "it holds dates";
  return cat("arrays of type '", code, "' are not read");
}

struct NpyHeader {
  NpyType type{};
  bool big_endian = false;
  bool fortran = false;
  std::vector<std::int64_t> shape;
  std::size_t data = 0;  // offset
};

class NpyReader {
 public:
  NpyReader(std::string_view bytes, const std::string& where) : bytes_(bytes), where_(where) {}

  at::Tensor read() const {
    NpyHeader header = read_header();
    const std::size_t expected = data_bytes(header);
    const std::size_t found = bytes_.size() - header.data;
    if (found != expected) bad(cat(found, " data bytes, the header promises ", expected));
    if (header.fortran) std::reverse(header.shape.begin(), header.shape.end());
    at::Tensor out = at::empty(header.shape, header.type.stored);
    if (expected > 0) std::memcpy(out.data_ptr(), bytes_.data() + header.data, expected);
    const bool swap = header.big_endian == (std::endian::native == std::endian::little);
    if (swap) reverse_bytes(out);
    if (header.type.code == "u8" && out.numel() > 0 && out.min().item<std::int64_t>() < 0) {
      bad("it holds numbers of 2^63 and more");
    }
    out = out.to(header.type.given);
    if (!header.fortran) return out;
    std::vector<std::int64_t> reversed;
    for (std::int64_t i = out.dim(); i-- > 0;) reversed.push_back(i);
    return out.permute(reversed).contiguous();
  }

 private:
  [[noreturn]] void bad(const std::string& what) const {
    fail(ErrorKind::kBadFile, cat(where_, ": ", what));
  }

  NpyHeader read_header() const {
    if (!starts_with(bytes_, kNpyMagic) || bytes_.size() < 10) bad("not a NumPy array");
    const std::size_t wide = bytes_[6] == 1 ? 2 : 4;
    if (bytes_[6] < 1 || bytes_[6] > 3 || bytes_.size() < 8 + wide) {
      bad("unknown version of the array format");
    }
    std::size_t length = 0;
    for (std::size_t i = 0; i < wide; ++i) {
      length |= std::size_t{static_cast<unsigned char>(bytes_[8 + i])} << (8 * i);
    }
    NpyHeader header;
    header.data = 8 + wide + length;
    if (length > kMaxNpyHeader || header.data > bytes_.size()) bad("the array's header is cut off");
    parse(std::string(bytes_.substr(8 + wide, length)), header);
    return header;
  }

  // A Python dictionary: {'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }
  void parse(const std::string& text, NpyHeader& header) const {
    static const std::regex type(R"('descr':\s*'([^']*)')");
    static const std::regex record(R"('descr':\s*[\[(])");
    static const std::regex order(R"('fortran_order':\s*(True|False))");
    static const std::regex shape(R"('shape':\s*\(([^)]*)\))");
    std::smatch found;
    if (std::regex_search(text, record)) {
      bad("it holds records (a structured type), which are not read");
    }
    if (!std::regex_search(text, found, type)) bad("the array's header is not understood");
    read_type(found[1], header);
    if (!std::regex_search(text, found, order)) bad("the array's header is not understood");
    header.fortran = found[1] == "True";
    if (!std::regex_search(text, found, shape)) bad("the array's header is not understood");
    header.shape = parse_shape(found[1]);
  }

  void read_type(const std::string& descr, NpyHeader& header) const {
    const bool ordered =
        !descr.empty() && std::string_view("<>|=").find(descr[0]) != std::string_view::npos;
    const std::string_view code = std::string_view(descr).substr(ordered ? 1 : 0);
    const auto known = std::find_if(kNpyTypes.begin(), kNpyTypes.end(),
                                    [&](const NpyType& type) { return type.code == code; });
    if (known == kNpyTypes.end()) bad(refusal(descr));
    header.type = *known;
    header.big_endian =
        descr[0] == '>' || (descr[0] != '<' && std::endian::native == std::endian::big);
  }

  std::vector<std::int64_t> parse_shape(const std::string& text) const {
    std::vector<std::int64_t> shape;
    for (std::string number : split(text, ',')) {
      std::erase(number, ' ');
      if (ends_with(number, "L")) number.pop_back();  // Python 2
      if (number.empty()) continue;
      const bool digits =
          std::all_of(number.begin(), number.end(), [](char c) { return c >= '0' && c <= '9'; });
      if (number.size() > 12 || !digits) bad(cat("bad shape (", text, ")"));
      shape.push_back(std::stoll(number));
    }
    if (shape.size() > 32) bad(cat(shape.size(), " dimensions"));
    return shape;
  }

  std::size_t data_bytes(const NpyHeader& header) const {
    std::size_t expected = elementSize(header.type.stored);
    for (const std::int64_t size : header.shape) {
      if (size > 0 && expected > kMaxNpyBytes / static_cast<std::size_t>(size)) {
        bad("the array is absurdly large");
      }
      expected *= static_cast<std::size_t>(size);
    }
    return expected;
  }

  static void reverse_bytes(const at::Tensor& x) {
    const std::size_t width = x.element_size();
    char* data = static_cast<char*>(x.data_ptr());
    for (std::size_t i = 0; i < x.nbytes(); i += width) std::reverse(data + i, data + i + width);
  }

  std::string_view bytes_;
  const std::string& where_;
};

const char* type_code(const at::Tensor& x) {
  switch (x.scalar_type()) {
    case at::kByte:
      return "|u1";
    case at::kInt:
      return "<i4";
    case at::kLong:
      return "<i8";
    case at::kFloat:
      return "<f4";
    case at::kDouble:
      return "<f8";
    default:
      fail(ErrorKind::kFailure, cat("npz has no type for ", toString(x.scalar_type())));
  }
}

}  // namespace

// Magic, version, header length, a Python dictionary padded so that the data begin at a multiple
// of 64.
std::string npy_header(const at::Tensor& x) {
  std::string shape;
  for (const std::int64_t size : x.sizes()) shape += cat(size, ",");
  std::string text =
      cat("{'descr': '", type_code(x), "', 'fortran_order': False, 'shape': (", shape, "), }");
  text.append(63 - (10 + text.size()) % 64, ' ');
  text += '\n';
  std::string out = cat(kNpyMagic, std::string_view("\x01\x00", 2));
  out += static_cast<char>(text.size() & 0xff);
  out += static_cast<char>(text.size() >> 8);
  return out + text;
}

at::Tensor parse_npy(std::string_view bytes, const std::string& where) {
  return NpyReader(bytes, where).read();
}

}  // namespace tiltflow
