#include "tiltflow/io/safetensors.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>

#include "tiltflow/base/error.h"
#include "tiltflow/base/file.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/io/foreign_file.h"
#include "tiltflow/tensor/aten.h"

namespace tiltflow {
namespace {

constexpr std::uint64_t kMaxHeader = 100'000'000;  // the limit of the reference implementation

struct TypeName {
  const char* name;
  at::ScalarType type;
};
constexpr TypeName kElementTypes[] = {
    {"F64", at::kDouble}, {"F32", at::kFloat}, {"F16", at::kHalf},  {"BF16", at::kBFloat16},
    {"I64", at::kLong},   {"I32", at::kInt},   {"I16", at::kShort}, {"I8", at::kChar},
    {"U8", at::kByte},    {"BOOL", at::kBool}};

struct Entry {
  std::string name;
  at::ScalarType type;
  std::vector<std::int64_t> shape;
  std::uint64_t begin, end;
};

// JSON parsing that refuses duplicate keys and deep nesting (the header has depth 3).
nlohmann::json parse_header(const std::string& text, const std::string& where) {
  std::vector<std::set<std::string>> scopes;
  const auto check = [&](int depth, nlohmann::json::parse_event_t event, nlohmann::json& value) {
    if (depth > 4) fail(ErrorKind::kBadFile, where + ": header is nested too deeply");
    if (event == nlohmann::json::parse_event_t::object_start) scopes.emplace_back();
    if (event == nlohmann::json::parse_event_t::object_end) scopes.pop_back();
    if (event == nlohmann::json::parse_event_t::key &&
        !scopes.back().insert(value.get<std::string>()).second) {
      fail(ErrorKind::kBadFile,
           cat(where, ": key '", value.get<std::string>(), "' appears twice in the header"));
    }
    return true;
  };
  try {
    return nlohmann::json::parse(text, check);
  } catch (const nlohmann::json::exception& error) {
    fail(ErrorKind::kBadFile, cat(where, ": header is not valid JSON (", error.what(), ")"));
  }
}

Entry parse_entry(const std::string& name, const nlohmann::json& value, const std::string& where) {
  const std::string label = cat(where, ": tensor '", name, "'");
  const auto bad = [&](const std::string& why) { fail(ErrorKind::kBadFile, cat(label, " ", why)); };
  if (!value.is_object() || !value.contains("dtype") || !value.contains("shape") ||
      !value.contains("data_offsets")) {
    bad("lacks dtype, shape or data_offsets");
  }
  const auto& dtype = value["dtype"];
  const auto& shape = value["shape"];
  const auto& offsets = value["data_offsets"];
  if (!dtype.is_string() || !shape.is_array() || !offsets.is_array() || offsets.size() != 2) {
    bad("has a malformed header entry");
  }
  Entry entry{name, at::kFloat, {}, 0, 0};
  const std::string type_name = dtype.get<std::string>();
  const auto* type = std::find_if(std::begin(kElementTypes), std::end(kElementTypes),
                                  [&](const TypeName& t) { return type_name == t.name; });
  if (type == std::end(kElementTypes)) {
    fail(ErrorKind::kBadFile, cat(label, " has the unsupported type '", type_name, "'"),
         type_name.starts_with("F8")
             ? "8-bit weights are not supported: save them as bfloat16 in Python"
             : "");
  }
  entry.type = type->type;
  std::uint64_t bytes = c10::elementSize(entry.type);
  std::uint64_t extent = bytes;
  if (shape.size() > 16) bad("has more than 16 dimensions");
  for (const auto& n : shape) {
    if (!n.is_number_unsigned() ||
        n.get<std::uint64_t>() >
            static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max())) {
      bad("has a dimension that is not a non-negative integer");
    }
    const std::uint64_t size = n.get<std::uint64_t>();
    if (size > 1 && extent > (std::uint64_t{1} << 62) / size) {
      bad("has dimensions that overflow");  // strides of empty tensors, too
    }
    extent *= std::max<std::uint64_t>(1, size);
    if (size != 0 && bytes > std::numeric_limits<std::uint64_t>::max() / size) {
      bad("has a size that overflows");
    }
    bytes *= size;
    entry.shape.push_back(static_cast<std::int64_t>(size));
  }
  for (const auto& offset : offsets) {
    if (!offset.is_number_unsigned()) bad("has an offset that is not a non-negative integer");
  }
  entry.begin = offsets[0].get<std::uint64_t>();
  entry.end = offsets[1].get<std::uint64_t>();
  if (entry.begin > entry.end) {
    bad(cat("has offsets [", entry.begin, ", ", entry.end, "), which run backwards"));
  }
  if (entry.end - entry.begin != bytes) {
    bad(cat("spans ", entry.end - entry.begin, " bytes, its shape needs ", bytes));
  }
  return entry;
}

// The length of the JSON header, from the first eight bytes; the header fits in the file.
std::uint64_t header_length(const MappedFile& file, const std::string& where) {
  if (file.size() < 8) {
    fail(ErrorKind::kBadFile,
         cat(where, ": too short for a safetensors file (", file.size(), " bytes)"));
  }
  std::uint64_t length = 0;
  std::memcpy(&length, file.data(), 8);
  if (length > kMaxHeader) {
    fail(ErrorKind::kBadFile,
         cat(where, ": header length ", length, " exceeds the limit of ", kMaxHeader, " bytes"),
         "is this a safetensors file?");
  }
  if (length > file.size() - 8) {
    fail(ErrorKind::kBadFile,
         cat(where, ": its header of ", length, " bytes does not fit in the ", file.size(),
             " bytes of the file (truncated?)"),
         "copy or download it again");
  }
  return length;
}

std::map<std::string, std::string> parse_metadata(const nlohmann::json& value,
                                                  const std::string& where) {
  std::map<std::string, std::string> out;
  if (!value.is_object()) fail(ErrorKind::kBadFile, where + ": __metadata__ is not an object");
  for (const auto& [key, text] : value.items()) {
    if (!text.is_string()) {
      fail(ErrorKind::kBadFile, cat(where, ": __metadata__ entry '", key, "' is not a string"));
    }
    out[key] = text.get<std::string>();
  }
  return out;
}

// Sorts the entries by place and refuses gaps and overlaps; returns where the last one ends.
std::uint64_t order_entries(std::vector<Entry>& entries, const std::string& where) {
  std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) {
    return std::tie(a.begin, a.end, a.name) < std::tie(b.begin, b.end, b.name);
  });
  std::uint64_t expected = 0;
  for (const Entry& entry : entries) {
    if (entry.begin < expected) {
      fail(ErrorKind::kBadFile, cat(where, ": tensor '", entry.name, "' overlaps its neighbour"));
    }
    if (entry.begin > expected) {
      fail(ErrorKind::kBadFile, cat(where, ": unused bytes before tensor '", entry.name, "'"));
    }
    expected = entry.end;
  }
  return expected;
}

// Bytes other than 0 and 1 must not end up in a C++ bool.
at::Tensor copied_tensor(const Entry& entry, const std::byte* data) {
  const bool boolean = entry.type == at::kBool;
  at::Tensor tensor = at::empty(entry.shape, boolean ? at::kByte : entry.type);
  if (entry.end > entry.begin) {
    std::memcpy(tensor.data_ptr(), data + entry.begin, entry.end - entry.begin);
  }
  return boolean ? tensor.ne(0) : tensor;
}

}  // namespace

TensorFile read_safetensors(const std::filesystem::path& path) {
  const std::string where = path.string();
  const MappedFile file(path);
  refuse_foreign_file(
      {reinterpret_cast<const char*>(file.data()), std::min(file.size(), kForeignHead)}, where);
  const std::uint64_t header_size = header_length(file, where);
  const std::uint64_t data_size = file.size() - 8 - header_size;
  const nlohmann::json header =
      parse_header(std::string(reinterpret_cast<const char*>(file.data()) + 8, header_size), where);
  if (!header.is_object()) fail(ErrorKind::kBadFile, where + ": header is not a JSON object");

  TensorFile out;
  std::vector<Entry> entries;
  for (const auto& [name, value] : header.items()) {
    if (name == "__metadata__") {
      out.metadata = parse_metadata(value, where);
    } else {
      entries.push_back(parse_entry(name, value, where));
    }
  }
  const std::uint64_t described = order_entries(entries, where);
  if (described > data_size) {
    fail(ErrorKind::kBadFile,
         cat(where, " is cut: its header describes ", 8 + header_size + described,
             " bytes, the file has ", file.size()),
         "copy or download it again");
  }
  if (described != data_size) {
    fail(ErrorKind::kBadFile, cat(where, ": ", data_size - described, " unused bytes at the end"));
  }
  const std::byte* data = file.data() + 8 + header_size;
  for (const Entry& entry : entries) out.tensors.add(entry.name, copied_tensor(entry, data));
  return out;
}

void write_safetensors(const std::filesystem::path& path, const ParameterSet& tensors,
                       const std::map<std::string, std::string>& metadata) {
  std::vector<std::string> names = tensors.names();
  std::sort(names.begin(), names.end());
  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  if (!metadata.empty()) header["__metadata__"] = metadata;
  std::vector<at::Tensor> kept;  // contiguous CPU copies live until the file is written
  std::uint64_t offset = 0;
  for (const std::string& name : names) {
    const at::Tensor tensor = tensors.at(name).detach().to(at::kCPU).contiguous();
    const auto* type =
        std::find_if(std::begin(kElementTypes), std::end(kElementTypes),
                     [&](const TypeName& t) { return tensor.scalar_type() == t.type; });
    if (type == std::end(kElementTypes)) {
      fail(ErrorKind::kFailure, cat("tensor '", name, "' has a type that safetensors cannot hold"));
    }
    header[name] = {{"dtype", type->name},
                    {"shape", tensor.sizes().vec()},
                    {"data_offsets", {offset, offset + tensor.nbytes()}}};
    offset += tensor.nbytes();
    kept.push_back(tensor);
  }
  std::string text = header.dump();
  text.append((8 - text.size() % 8) % 8, ' ');  // data starts aligned
  const std::uint64_t length = text.size();
  std::string prefix(8, '\0');
  std::memcpy(prefix.data(), &length, 8);
  std::vector<std::string_view> pieces{prefix, text};
  for (const at::Tensor& tensor : kept) {
    pieces.emplace_back(static_cast<const char*>(tensor.data_ptr()), tensor.nbytes());
  }
  write_file_atomic(path, pieces);
}

}  // namespace tiltflow
