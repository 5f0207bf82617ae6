// PyTorch checkpoint files (.pt, .pth, .ckpt, .bin), read without executing anything and written so
// that torch.load(weights_only=True) accepts them. Both containers: the zip archive and the stream
// of versions before 1.6. Files are untrusted: opcodes (see pickle.h), storages, offsets, strides
// and sizes are checked before a tensor is made.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "tiltflow/io/pickle.h"
#include "tiltflow/tensor/parameters.h"

namespace tiltflow {

struct TorchFile {
  struct Storages;  // where the raw bytes are
  std::string where;
  PickleDocument document;
  std::shared_ptr<const Storages> storages;
};

bool looks_like_torch_file(std::string_view first_bytes);

// Parses the structure; tensors are materialised on demand. Throws kBadFile (TorchScript archives
// are refused with a hint).
TorchFile read_torch_file(const std::filesystem::path& path);

bool is_tensor(const PickleNode& node);
// A contiguous copy on the CPU whatever device the file names. Throws kBadFile.
at::Tensor tensor_from(const TorchFile& file, const PickleNode& node, const std::string& name);
// Every tensor below `node` by its dotted path: nested dicts, lists and tuples.
ParameterSet tensors_below(const TorchFile& file, const PickleNode& node);

// Names under which the file keeps state dicts: "" for a bare state dict, else keys such as "ema",
// "model", "state_dict" or "ema.shadow", one level deeper.
std::vector<std::string> state_dict_sections(const TorchFile& file);
// The dict of one section, null when there is none.
const PickleNode* state_dict_node(const TorchFile& file, const std::string& section);
// The state dict of one section. Throws kBadFile when there is none.
ParameterSet state_dict(const TorchFile& file, const std::string& section);

// A value that Python's safe loader takes.
using PlainValue = std::variant<std::string, bool, std::int64_t, double>;
using PlainDicts = std::map<std::string, std::map<std::string, PlainValue>>;

// Atomic. Sections become keys of a dict ({"model": {...}, "ema": {...}}); the name "" writes a
// bare state dict. `beside`: dicts of plain values, {"args": {"num_heads": 6}}: keys beside the
// sections, or attributes of the bare state dict (an OrderedDict), which load_state_dict takes as
// it is. Tensors that share memory are written once each.
void write_torch_file(const std::filesystem::path& path,
                      const std::vector<std::pair<std::string, ParameterSet>>& sections,
                      const PlainDicts& beside = {});

}  // namespace tiltflow
