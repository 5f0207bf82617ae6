#include "tiltflow/io/tensor_file.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "tiltflow/base/error.h"
#include "tiltflow/base/file.h"
#include "tiltflow/base/log.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/io/checkpoint_arguments.h"
#include "tiltflow/io/foreign_file.h"
#include "tiltflow/io/state_dict.h"
#include "tiltflow/io/torch_file.h"
#include "tiltflow/tensor/aten.h"

namespace tiltflow {
namespace {

constexpr std::size_t kMaxIndex = std::size_t{1} << 28;

std::string_view head_of(const MappedFile& file) {
  return {reinterpret_cast<const char*>(file.data()), std::min(file.size(), kForeignHead)};
}

// By content: diffusers and transformers put a variant's name into the middle of the suffix.
// (index.fp16.json)
bool looks_like_index(std::string_view head) {
  if (head.substr(0, 8).find('\0') != std::string_view::npos) {
    return false;  // the length of a safetensors header
  }
  const std::size_t start = head.find_first_not_of(" \t\r\n");
  return start != std::string_view::npos && head[start] == '{';
}

nlohmann::json read_index(const std::filesystem::path& path) {
  const std::string where = path.string();
  nlohmann::json index;
  try {
    index = nlohmann::json::parse(read_file(path, kMaxIndex));
  } catch (const nlohmann::json::exception& error) {
    fail(ErrorKind::kBadFile, cat(where, ": not valid JSON (", error.what(), ")"));
  }
  if (!index.is_object() || !index.contains("weight_map") || !index["weight_map"].is_object()) {
    fail(ErrorKind::kBadFile,
         cat(where, " is a JSON file without weight_map, not the index of a sharded model"),
         "give the file of weights itself");
  }
  return index["weight_map"];
}

// Whole content of a file that is no index.
TensorFile read_part(const std::filesystem::path& path) {
  if (tensor_format(path) != TensorFormat::kTorch) return read_safetensors(path);
  const TorchFile file = read_torch_file(path);
  return {tensors_below(file, *file.document.root), {}};
}

TensorFile read_sharded(const std::filesystem::path& path) {
  const std::string where = path.string();
  std::map<std::string, TensorFile> shards;
  TensorFile out;
  const nlohmann::json map = read_index(path);
  for (const auto& [name, shard] : map.items()) {
    if (!shard.is_string()) {
      fail(ErrorKind::kBadFile, cat(where, ": the shard of '", name, "' is not a file name"));
    }
    const std::string file = shard.get<std::string>();
    if (file.empty() || file.find('/') != std::string::npos ||
        file.find('\\') != std::string::npos || file == "..") {
      fail(ErrorKind::kBadFile,
           cat(where, ": the shard '", file, "' of '", name,
               "' is not a plain file name"));  // must not lead out of the folder
    }
    if (!shards.count(file)) {
      const std::filesystem::path part = path.parent_path() / file;
      if (!std::filesystem::exists(part)) {
        fail(ErrorKind::kBadFile, cat(where, ": its shard ", file, " is not there"),
             "put all shards beside the index");
      }
      shards.emplace(file, read_part(part));
    }
    const ParameterSet& tensors = shards.at(file).tensors;
    if (!tensors.contains(name)) {
      fail(ErrorKind::kBadFile, cat(where, ": '", name, "' is not in ", file));
    }
    out.tensors.add(name, tensors.at(name));
  }
  for (const auto& [file, shard] : shards) {
    out.metadata.insert(shard.metadata.begin(), shard.metadata.end());
  }
  return out;
}

void log_choice(const StateDictFile& file, const std::string& where) {
  if (file.sections.size() > 1) {
    log_info(cat(where, ": taking '", file.section, "' of ", join(file.sections, ", ")));
  }
}

StateDictFile flat_file(TensorFile content, const std::string& section, const std::string& where) {
  StateDictFile out;
  out.metadata = std::move(content.metadata);
  if (out.metadata.count("tiltflow.family")) {  // ours: nothing wraps its names
    if (!section.empty()) {
      fail(ErrorKind::kBadFile, cat(where, ": has no state dict '", section, "'"),
           "its tensors are one state dict");
    }
    out.tensors = std::move(content.tensors);
    return out;
  }
  StateDict chosen = flat_state_dict(content.tensors, section, where);
  out.tensors = std::move(chosen.tensors);
  out.section = std::move(chosen.section);
  out.sections = std::move(chosen.sections);
  out.prefix = std::move(chosen.prefix);
  log_choice(out, where);
  return out;
}

// A module that was pickled whole, at the root or under a key.
const PickleNode* pickled_module(const PickleNode& root) {
  const auto is_module = [](const PickleNode& node) {
    return node.is(PickleNode::Kind::kObject) && node.state && node.state->find("_parameters");
  };
  if (is_module(root)) return &root;
  for (const auto& [key, value] : root.entries) {
    if (is_module(*value)) return value;
  }
  return nullptr;
}

[[noreturn]] void refuse_without_state_dict(const TorchFile& file) {
  if (const PickleNode* module = pickled_module(*file.document.root)) {
    fail(ErrorKind::kBadFile,
         cat(file.where, " holds a whole pickled ", module->text, ", which needs its code"),
         "save its tensors in Python: torch.save(model.state_dict(), FILE)");
  }
  fail(ErrorKind::kBadFile, cat(file.where, ": holds no state dict"), "see `tiltflow inspect`");
}

// Averages without names (a list, `shadow_params`) cannot be used; that weights are taken instead
// is said.
void warn_of_nameless_average(const TorchFile& file, const std::string& taken) {
  const PickleNode& root = *file.document.root;
  for (const auto& [key, value] : root.entries) {
    if (key->is(PickleNode::Kind::kText) && is_average(key->text) && !is_average(taken) &&
        value->find("shadow_params")) {
      log_warn(cat(file.where, ": '", key->text, "' keeps its averaged weights without names; '",
                   taken, "' is taken"));
    }
  }
}

StateDictFile read_checkpoint(const std::filesystem::path& path, const std::string& section) {
  const TorchFile file = read_torch_file(path);
  const std::vector<std::string> sections = state_dict_sections(file);
  if (sections.empty()) refuse_without_state_dict(file);
  const bool one = sections.size() == 1;
  const bool named = std::find(sections.begin(), sections.end(), section) != sections.end();
  const std::string taken = named                    ? section
                            : one || section.empty() ? choose_section(sections, file.where)
                                                     : section;
  TensorFile content{state_dict(file, taken),
                     checkpoint_arguments(*file.document.root, state_dict_node(file, taken))};
  StateDictFile out = flat_file(std::move(content), named ? "" : one ? section : "", file.where);
  warn_of_nameless_average(file, taken);
  if (out.section.empty()) {
    out.section = taken;
    out.sections = sections;
    log_choice(out, file.where);
  }
  return out;
}

}  // namespace

TensorFormat tensor_format(const std::filesystem::path& path) {
  if (std::filesystem::is_directory(path)) {
    fail(ErrorKind::kBadFile, cat(path.string(), " is a folder, a file of tensors is expected"),
         "name the file of weights in it");
  }
  const MappedFile file(path);
  const std::string_view head = head_of(file);
  if (looks_like_torch_file(head)) return TensorFormat::kTorch;
  if (looks_like_index(head)) return TensorFormat::kSharded;
  refuse_foreign_file(head, path.string());
  const std::string ending = path.extension().string();
  const bool named = ending == ".pt" || ending == ".pth" || ending == ".ckpt" || ending == ".bin";
  const bool other = !looks_like_safetensors(head) && (named || starts_with(head, "\x80"));
  return other ? TensorFormat::kTorch
               : TensorFormat::kSafetensors;  // its reader says what is wrong
}

StateDictFile read_state_dict(const std::filesystem::path& path, const std::string& section) {
  const TensorFormat format = tensor_format(path);
  if (format == TensorFormat::kTorch) return read_checkpoint(path, section);
  return flat_file(format == TensorFormat::kSharded ? read_sharded(path) : read_safetensors(path),
                   section, path.string());
}

TensorFile read_tensors(const std::filesystem::path& path, const std::string& section) {
  StateDictFile file = read_state_dict(path, section);
  if (!file.section.empty()) file.metadata["section"] = file.section;
  return {std::move(file.tensors), std::move(file.metadata)};
}

void write_sharded_safetensors(const std::filesystem::path& index, const ParameterSet& tensors,
                               double shard_bytes,
                               const std::map<std::string, std::string>& metadata) {
  const std::string name = index.filename().string();
  const std::string suffix = ".safetensors.index.json";
  if (!ends_with(name, suffix)) {
    fail(ErrorKind::kUsage, cat(index.string(), ": a sharded model is named <base>", suffix));
  }
  std::vector<ParameterSet> shards(1);
  for (const auto& [key, tensor] : tensors) {
    if (!shards.back().empty() &&
        shards.back().bytes() + static_cast<double>(tensor.nbytes()) > shard_bytes) {
      shards.emplace_back();
    }
    shards.back().add(key, tensor);
  }
  const auto five = [](std::size_t n) {
    std::string digits = std::to_string(n);
    return std::string(digits.size() < 5 ? 5 - digits.size() : 0, '0') + digits;
  };
  nlohmann::ordered_json out{
      {"metadata", {{"total_size", static_cast<std::uint64_t>(tensors.bytes())}}},
      {"weight_map", nlohmann::ordered_json::object()}};
  for (std::size_t i = 0; i < shards.size(); ++i) {
    const std::string file = cat(name.substr(0, name.size() - suffix.size()), "-", five(i + 1),
                                 "-of-", five(shards.size()), ".safetensors");
    write_safetensors(index.parent_path() / file, shards[i], metadata);
    for (const auto& [key, tensor] : shards[i]) out["weight_map"][key] = file;
  }
  write_file_atomic(index, out.dump(2) + "\n");
}

}  // namespace tiltflow
