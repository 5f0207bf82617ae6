#include "tiltflow/io/torch_file.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <map>
#include <set>

#include "tiltflow/base/error.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/io/foreign_file.h"
#include "tiltflow/io/torch_types.h"
#include "tiltflow/io/zip_archive.h"
#include "tiltflow/tensor/aten.h"

namespace tiltflow {

using Kind = PickleNode::Kind;

struct TorchFile::Storages {
  explicit Storages(const std::filesystem::path& path) : file(path) {}
  std::string_view bytes() const {
    return {reinterpret_cast<const char*>(file.data()), file.size()};
  }

  MappedFile file;
  std::unique_ptr<ZipArchive> zip;              // null for the stream container
  std::string root;                             // of the archive: "archive/"
  std::map<std::string, std::string_view> raw;  // stream container: key -> bytes
};

namespace {

constexpr std::size_t kMaxPickle = std::size_t{1} << 31;
constexpr int kDeepestTensor = 64;
// LONG1 of the number 0x1950a86a20f9469cfc6c, the first pickle of the stream container (of any
// protocol)
constexpr std::string_view kStreamMagic("\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19\x2e", 13);

bool looks_like_stream(std::string_view bytes) {
  return starts_with(bytes, "\x80") &&
         bytes.substr(0, 32).find(kStreamMagic) != std::string_view::npos;
}

[[noreturn]] void bad(const TorchFile& file, const std::string& name, const std::string& why) {
  fail(ErrorKind::kBadFile, cat(file.where, ": tensor '", name, "' ", why));
}

// ('storage', torch.FloatStorage, key, location, elements[, view])
struct StorageId {
  at::ScalarType type;
  bool untyped;
  std::string key;
  std::uint64_t elements;
  std::uint64_t view_offset;
  std::uint64_t view_elements;
};

std::uint64_t natural(const TorchFile& file, const std::string& name, const PickleNode& node) {
  if (!node.is(Kind::kInt) || !node.text.empty() || node.integer < 0) {
    bad(file, name, "has a size, stride or offset that is not a natural number");
  }
  return static_cast<std::uint64_t>(node.integer);
}

StorageId storage_id(const TorchFile& file, const std::string& name, const PickleNode& node) {
  if (!node.is(Kind::kPersistent) || !node.items[0]->is(Kind::kTuple) ||
      node.items[0]->items.size() < 5) {
    bad(file, name, "has no storage");
  }
  const auto& id = node.items[0]->items;
  if (!id[0]->is(Kind::kText) || id[0]->text != "storage" || !id[1]->is(Kind::kGlobal) ||
      !id[2]->is(Kind::kText)) {
    bad(file, name, "has a malformed storage");
  }
  StorageId out{at::kByte, false, id[2]->text, natural(file, name, *id[4]), 0, 0};
  const std::string& type = id[1]->text;
  if (ends_with(type, ".UntypedStorage")) {
    out.untyped = true;
  } else {
    const auto* found =
        std::find_if(std::begin(kTorchTypes), std::end(kTorchTypes), [&](const TorchType& t) {
          return type == cat("torch.", t.storage, "Storage") ||
                 type == cat("torch.cuda.", t.storage, "Storage");
        });
    if (found == std::end(kTorchTypes)) bad(file, name, cat("has the unsupported storage ", type));
    out.type = found->type;
  }
  out.view_elements = out.elements;
  if (id.size() > 5 &&
      id[5]->is(Kind::kTuple)) {  // stream container: a storage that is part of another one
    if (id[5]->items.size() < 3) bad(file, name, "has a malformed storage view");
    out.view_offset = natural(file, name, *id[5]->items[1]);
    out.view_elements = natural(file, name, *id[5]->items[2]);
    if (out.view_offset > out.elements || out.view_elements > out.elements - out.view_offset) {
      bad(file, name, "has a storage view outside its storage");
    }
  }
  return out;
}

std::string_view storage_bytes(const TorchFile& file, const std::string& name,
                               const StorageId& id) {
  const TorchFile::Storages& s = *file.storages;
  const std::uint64_t width = id.untyped ? 1 : c10::elementSize(id.type);
  if (id.elements > std::numeric_limits<std::uint64_t>::max() / 16) {
    bad(file, name, "has a storage whose size overflows");
  }
  std::string_view data;
  if (s.zip) {
    const std::string entry = cat(s.root, "data/", id.key);
    if (!s.zip->contains(entry)) {
      bad(file, name, cat("refers to the storage '", id.key, "', which the archive lacks"));
    }
    data = s.zip->stored(entry);
  } else {
    const auto found = s.raw.find(id.key);
    if (found == s.raw.end()) {
      bad(file, name, cat("refers to the storage '", id.key, "', which the file lacks"));
    }
    data = found->second;
  }
  if (data.size() < id.elements * width) {
    bad(file, name,
        cat("needs ", id.elements * width, " bytes of storage '", id.key, "', the file has ",
            data.size()));
  }
  return data.substr(id.view_offset * width, id.view_elements * width);
}

// The arguments of the call that builds a tensor, or null. Parameters and subclasses wrap such a
// call.
const std::vector<const PickleNode*>* tensor_call(const PickleNode& node, std::string* function,
                                                  int depth = 0) {
  if (!node.is(Kind::kObject) || depth > 4) return nullptr;
  if ((node.text == "torch._utils._rebuild_parameter" ||
       node.text == "torch._utils._rebuild_parameter_with_state") &&
      !node.items.empty()) {
    return tensor_call(*node.items[0], function, depth + 1);
  }
  const bool subclass = node.text == "torch._tensor._rebuild_from_type_v2" &&
                        node.items.size() >= 3 && node.items[0]->is(Kind::kGlobal) &&
                        node.items[2]->is(Kind::kTuple);
  const std::string& name = subclass ? node.items[0]->text : node.text;
  const auto& arguments = subclass ? node.items[2]->items : node.items;
  if (name != "torch._utils._rebuild_tensor_v2" && name != "torch._utils._rebuild_tensor_v3" &&
      name != "torch._utils._rebuild_tensor") {
    return nullptr;
  }
  *function = name;
  return &arguments;
}

// Lists the keys of the stream container's storages and finds their bytes.
void find_raw_storages(const TorchFile& file, const PickleDocument& keys, std::size_t position,
                       std::map<std::string, std::string_view>& out) {
  std::map<std::string, std::uint64_t> widths;  // from the storages that the object mentions
  for (const PickleNode& node : file.document.nodes) {
    if (!node.is(Kind::kPersistent)) continue;
    const StorageId id = storage_id(file, "?", node);
    widths[id.key] = id.untyped ? 1 : c10::elementSize(id.type);
  }
  const std::string_view bytes = file.storages->bytes();
  for (const PickleNode* key : keys.root->items) {
    if (!key->is(Kind::kText) || !widths.count(key->text)) {
      fail(ErrorKind::kBadFile, cat(file.where, ": lists a storage that no tensor uses"));
    }
    if (bytes.size() - position < 8) {
      fail(ErrorKind::kBadFile, cat(file.where, ": ends before its last storage (truncated?)"));
    }
    std::uint64_t elements = 0;
    std::memcpy(&elements, bytes.data() + position, 8);
    position += 8;
    const std::uint64_t width = widths[key->text];
    if (elements > (bytes.size() - position) / width) {
      fail(ErrorKind::kBadFile,
           cat(file.where, ": storage '", key->text, "' of ", elements, " elements leaves the ",
               bytes.size(), " bytes of the file (truncated?)"),
           "copy or download it again");
    }
    out[key->text] = bytes.substr(position, elements * width);
    position += elements * width;
  }
}

TorchFile read_stream(const std::filesystem::path& path,
                      std::shared_ptr<TorchFile::Storages> storages) {
  TorchFile file{path.string(), {}, nullptr};
  std::string_view rest = storages->bytes();
  std::size_t position = 0;
  const auto next = [&] {
    PickleDocument document = parse_pickle(rest.substr(position), file.where);
    position += document.consumed;
    return document;
  };
  next();  // magic number
  const PickleDocument protocol = next();
  if (!protocol.root->is(Kind::kInt) || protocol.root->integer != 1001) {
    fail(ErrorKind::kBadFile, cat(file.where, ": unknown protocol of the old PyTorch format"));
  }
  const PickleDocument system = next();
  const PickleNode* little_endian = system.root->find("little_endian");
  if (little_endian && little_endian->is(Kind::kBool) && !little_endian->integer) {
    fail(ErrorKind::kBadFile, cat(file.where, ": was written on a big-endian machine"));
  }
  file.document = next();
  const PickleDocument keys = next();
  file.storages = storages;
  find_raw_storages(file, keys, position, storages->raw);
  return file;
}

TorchFile read_archive(const std::filesystem::path& path,
                       std::shared_ptr<TorchFile::Storages> storages) {
  TorchFile file{path.string(), {}, nullptr};
  storages->zip = std::make_unique<ZipArchive>(storages->file, file.where);
  refuse_foreign_archive(*storages->zip, file.where);
  std::string entry;
  for (const std::string& name : storages->zip->names()) {
    if (ends_with(name, "/data.pkl") && std::count(name.begin(), name.end(), '/') == 1) {
      entry = name;
    }
  }
  if (entry.empty()) {
    fail(ErrorKind::kBadFile,
         cat(file.where, ": a zip archive without data.pkl, not a PyTorch checkpoint"));
  }
  storages->root = entry.substr(0, entry.size() - 8);
  if (const std::string order = storages->root + "byteorder";
      storages->zip->contains(order) && !starts_with(storages->zip->read(order, 64), "little")) {
    fail(ErrorKind::kBadFile, cat(file.where, ": was written on a big-endian machine"));
  }
  file.document = parse_pickle(storages->zip->read(entry, kMaxPickle), file.where);
  file.storages = std::move(storages);
  return file;
}

at::Tensor make_tensor(const TorchFile& file, const PickleNode& node, const std::string& name,
                       std::uint64_t& made);

// Sparse, quantised, distributed and other tensors that have no plain storage.
bool is_other_tensor(const PickleNode& node) {
  if (!node.is(Kind::kObject)) return false;
  const bool distributed = ends_with(node.text, "DTensor") || ends_with(node.text, "ShardedTensor");
  return distributed || starts_with(node.text, "torch._utils._rebuild_") ||
         starts_with(node.text, "torch._tensor._rebuild_");
}

// `made`: bytes of the tensors so far.
void collect(const TorchFile& file, const PickleNode& node, const std::string& name,
             ParameterSet& out, std::uint64_t& made, int depth) {
  if (depth > kDeepestTensor) {
    fail(ErrorKind::kBadFile,
         cat(file.where, ": is nested too deeply at '", name.substr(0, 80), "'"));
  }
  const auto below = [&](const std::string& key, const PickleNode& child) {
    collect(file, child, name.empty() ? key : cat(name, ".", key), out, made, depth + 1);
  };
  if (is_tensor(node)) {
    out.add(name, make_tensor(file, node, name, made));
  } else if (is_other_tensor(node)) {
    const std::string what = node.text.substr(node.text.rfind('.') + 1);
    fail(ErrorKind::kBadFile,
         cat(file.where, ": tensor '", name, "' is no plain tensor (", what, ")"),
         "save it in Python as tensor.to_dense() or tensor.dequantize() on the CPU");
  } else if (node.is(Kind::kDict)) {
    std::map<std::string, const PickleNode*>
        last;  // of equal keys the last one counts, as in Python
    for (const auto& [key, value] : node.entries) {
      last[key->is(Kind::kText) ? key->text : pickle_text(*key)] = value;
    }
    for (const auto& [key, value] : node.entries) {
      const std::string label = key->is(Kind::kText) ? key->text : pickle_text(*key);
      if (last[label] == value) {
        below(label, *value);
        last[label] = nullptr;
      }
    }
  } else if (node.is(Kind::kList) || node.is(Kind::kTuple)) {
    for (std::size_t i = 0; i < node.items.size(); ++i) below(std::to_string(i), *node.items[i]);
  }
}

}  // namespace

bool looks_like_torch_file(std::string_view first_bytes) {
  return looks_like_zip(first_bytes) || looks_like_stream(first_bytes);
}

TorchFile read_torch_file(const std::filesystem::path& path) {
  auto storages = std::make_shared<TorchFile::Storages>(path);
  if (looks_like_zip(storages->bytes())) return read_archive(path, std::move(storages));
  if (looks_like_stream(storages->bytes())) return read_stream(path, std::move(storages));
  refuse_foreign_file(storages->bytes(), path.string());
  if (starts_with(storages->bytes(), "\x80")) {
    fail(ErrorKind::kBadFile,
         cat(path.string(), " is a Python pickle that torch.save did not write"),
         "save the tensors in Python: torch.save(state_dict, FILE)");
  }
  fail(ErrorKind::kBadFile, cat(path.string(), ": not a PyTorch checkpoint"));
}

bool is_tensor(const PickleNode& node) {
  std::string function;
  return tensor_call(node, &function) != nullptr;
}

namespace {

// The element type: of the storage, or named by the seventh argument of _rebuild_tensor_v3.
at::ScalarType element_type(const TorchFile& file, const std::string& name, const StorageId& id,
                            const PickleNode* dtype) {
  if (!dtype) {
    if (id.untyped) bad(file, name, "has a storage without a type");
    return id.type;
  }
  const auto* found =
      std::find_if(std::begin(kTorchTypes), std::end(kTorchTypes),
                   [&](const TorchType& t) { return dtype->text == cat("torch.", t.dtype); });
  if (found == std::end(kTorchTypes)) {
    bad(file, name, cat("has the unsupported type ", pickle_text(*dtype, 40)));
  }
  return found->type;
}

// How a tensor lies in its storage, in elements.
struct TensorLayout {
  std::vector<std::int64_t> shape;
  std::vector<std::int64_t> steps;
  std::int64_t offset = 0;
  std::uint64_t last = 0;   // index of the last element
  std::uint64_t count = 1;  // number of elements
};

TensorLayout layout_of(const TorchFile& file, const std::string& name, const PickleNode& offset,
                       const PickleNode& sizes, const PickleNode& strides) {
  constexpr std::uint64_t kLimit = std::uint64_t{1} << 62;
  TensorLayout out;
  out.last = natural(file, name, offset);
  out.offset = static_cast<std::int64_t>(offset.integer);
  for (std::size_t i = 0; i < sizes.items.size(); ++i) {
    const std::uint64_t n = natural(file, name, *sizes.items[i]);
    const std::uint64_t step = natural(file, name, *strides.items[i]);
    if (n > kLimit || step > kLimit || (n > 0 && out.count > kLimit / n) ||
        (n > 1 && step > (kLimit - std::min(out.last, kLimit)) / (n - 1))) {
      bad(file, name, "has a size that overflows");
    }
    out.count *= n;
    if (n > 1) out.last += (n - 1) * step;
    out.shape.push_back(static_cast<std::int64_t>(n));
    out.steps.push_back(static_cast<std::int64_t>(step));
  }
  return out;
}

// The storage as one row of `available` elements; old files are not aligned.
at::Tensor whole_storage(std::string_view data, std::uint64_t available, at::ScalarType type) {
  const std::uint64_t width = c10::elementSize(type);
  const auto n = static_cast<std::int64_t>(available);
  if (reinterpret_cast<std::uintptr_t>(data.data()) % width == 0) {
    return at::from_blob(const_cast<char*>(data.data()), {n}, at::TensorOptions().dtype(type));
  }
  at::Tensor copy = at::empty({n}, type);
  std::memcpy(copy.data_ptr(), data.data(), available * width);
  return copy;
}

at::Tensor make_tensor(const TorchFile& file, const PickleNode& node, const std::string& name,
                       std::uint64_t& made) {
  std::string function;
  const auto* arguments = tensor_call(node, &function);
  if (!arguments) {
    fail(ErrorKind::kBadFile,
         cat(file.where, ": '", name, "' is ", pickle_text(node, 40), ", not a plain tensor"));
  }
  const bool names_type = ends_with(function, "_v3");
  if (arguments->size() < 4 || (names_type && arguments->size() < 7)) {
    bad(file, name, "is built in an unknown way");
  }
  const StorageId id = storage_id(file, name, *(*arguments)[0]);
  const at::ScalarType type = element_type(file, name, id, names_type ? (*arguments)[6] : nullptr);
  const PickleNode& sizes = *(*arguments)[2];
  const PickleNode& strides = *(*arguments)[3];
  if (!sizes.is(Kind::kTuple) || !strides.is(Kind::kTuple) ||
      sizes.items.size() != strides.items.size() || sizes.items.size() > 64) {
    bad(file, name, "has malformed sizes or strides");
  }
  const std::string_view data = storage_bytes(file, name, id);
  const std::uint64_t width = c10::elementSize(type);
  const std::uint64_t available = data.size() / width;
  const TensorLayout layout = layout_of(file, name, *(*arguments)[1], sizes, strides);
  if (layout.count == 0) return at::empty(layout.shape, type);
  if (layout.last >= available) {
    bad(file, name, cat("reaches element ", layout.last, " of a storage of ", available));
  }
  made += layout.count * width;  // strides of zero must not turn a small file into a large tensor
  if (made >
      8 * static_cast<std::uint64_t>(file.storages->file.size()) + (std::uint64_t{1} << 26)) {
    bad(file, name, "repeats its storage too often");
  }
  // Boolean bytes other than 0 and 1 must not end up in a C++ bool.
  const at::Tensor whole = whole_storage(data, available, type == at::kBool ? at::kByte : type);
  const at::Tensor view = whole.as_strided(layout.shape, layout.steps, layout.offset);
  return type == at::kBool ? view.ne(0) : view.clone(at::MemoryFormat::Contiguous);
}

}  // namespace

at::Tensor tensor_from(const TorchFile& file, const PickleNode& node, const std::string& name) {
  std::uint64_t made = 0;
  return make_tensor(file, node, name, made);
}

ParameterSet tensors_below(const TorchFile& file, const PickleNode& node) {
  ParameterSet found;
  std::uint64_t made = 0;
  collect(file, node, "", found, made, 0);
  return found;
}

}  // namespace tiltflow
