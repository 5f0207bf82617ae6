#include "tiltflow/io/tensor_file.h"

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>

#include "tiltflow/base/error.h"
#include "tiltflow/base/file.h"
#include "tiltflow/base/log.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/io/torch_file.h"
#include "tiltflow/tensor/aten.h"

namespace tiltflow {
namespace {

constexpr std::string_view kIndexSuffix = ".index.json";
constexpr std::size_t kMaxIndex = std::size_t{1} << 28;

TensorFile read_sharded(const std::filesystem::path& path) {
  const std::string where = path.string();
  nlohmann::json index;
  try {
    index = nlohmann::json::parse(read_file(path, kMaxIndex));
  } catch (const nlohmann::json::exception& error) {
    fail(ErrorKind::kBadFile, cat(where, ": not valid JSON (", error.what(), ")"));
  }
  if (!index.is_object() || !index.contains("weight_map") || !index["weight_map"].is_object()) fail(ErrorKind::kBadFile, cat(where, ": has no weight_map"), "expected the index.json of sharded safetensors");
  std::map<std::string, TensorFile> shards;
  TensorFile out;
  for (const auto& [name, shard] : index["weight_map"].items()) {
    if (!shard.is_string()) fail(ErrorKind::kBadFile, cat(where, ": the shard of '", name, "' is not a file name"));
    const std::string file = shard.get<std::string>();
    if (file.empty() || file.find('/') != std::string::npos || file.find('\\') != std::string::npos || file == "..") {
      fail(ErrorKind::kBadFile, cat(where, ": the shard '", file, "' of '", name, "' is not a plain file name"));  // must not lead out of the folder
    }
    if (!shards.count(file)) shards.emplace(file, read_safetensors(path.parent_path() / file));
    const ParameterSet& tensors = shards.at(file).tensors;
    if (!tensors.contains(name)) fail(ErrorKind::kBadFile, cat(where, ": '", name, "' is not in ", file));
    out.tensors.add(name, tensors.at(name));
  }
  for (const auto& [file, shard] : shards) out.metadata.insert(shard.metadata.begin(), shard.metadata.end());
  return out;
}

TensorFile read_checkpoint(const std::filesystem::path& path, std::string section) {
  const TorchFile file = read_torch_file(path);
  const std::vector<std::string> sections = state_dict_sections(file);
  if (sections.empty()) fail(ErrorKind::kBadFile, cat(path.string(), ": holds no state dict"), "see `tiltflow inspect`");
  if (section.empty()) {
    section = sections.front();
    for (const char* preferred : {"state_dict", "model", "ema", ""}) if (std::find(sections.begin(), sections.end(), preferred) != sections.end()) section = preferred;
    if (sections.size() > 1) log_info(cat(path.string(), ": taking '", section, "' of ", join(sections, ", ")));
  }
  TensorFile out{state_dict(file, section), {}};
  if (!section.empty()) out.metadata["section"] = section;
  if (const PickleNode* args = file.document.root->find("args"); args && args->state && args->state->is(PickleNode::Kind::kDict)) {
    for (const auto& [key, value] : args->state->entries) {
      if (key->is(PickleNode::Kind::kText)) out.metadata["args." + key->text] = value->is(PickleNode::Kind::kText) ? value->text : pickle_text(*value);
    }
  }
  return out;
}

}  // namespace

TensorFormat tensor_format(const std::filesystem::path& path) {
  const MappedFile file(path);
  const std::string_view head(reinterpret_cast<const char*>(file.data()), std::min<std::size_t>(file.size(), 64));
  if (looks_like_torch_file(head)) return TensorFormat::kTorch;
  return ends_with(path.string(), kIndexSuffix) ? TensorFormat::kShardedSafetensors : TensorFormat::kSafetensors;
}

TensorFile read_tensors(const std::filesystem::path& path, const std::string& section) {
  const TensorFormat format = tensor_format(path);
  if (format == TensorFormat::kTorch) return read_checkpoint(path, section);
  if (!section.empty()) fail(ErrorKind::kConfig, cat(path.string(), ": only PyTorch checkpoints have sections, '", section, "' was asked for"));
  return format == TensorFormat::kShardedSafetensors ? read_sharded(path) : read_safetensors(path);
}

void write_sharded_safetensors(const std::filesystem::path& index, const ParameterSet& tensors, double shard_bytes, const std::map<std::string, std::string>& metadata) {
  const std::string name = index.filename().string();
  const std::string suffix = ".safetensors" + std::string(kIndexSuffix);
  if (!ends_with(name, suffix)) fail(ErrorKind::kUsage, cat(index.string(), ": a sharded model is named <base>", suffix));
  std::vector<ParameterSet> shards(1);
  for (const auto& [key, tensor] : tensors) {
    if (!shards.back().empty() && shards.back().bytes() + static_cast<double>(tensor.nbytes()) > shard_bytes) shards.emplace_back();
    shards.back().add(key, tensor);
  }
  const auto five = [](std::size_t n) { std::string digits = std::to_string(n); return std::string(digits.size() < 5 ? 5 - digits.size() : 0, '0') + digits; };
  nlohmann::ordered_json out{{"metadata", {{"total_size", static_cast<std::uint64_t>(tensors.bytes())}}}, {"weight_map", nlohmann::ordered_json::object()}};
  for (std::size_t i = 0; i < shards.size(); ++i) {
    const std::string file = cat(name.substr(0, name.size() - suffix.size()), "-", five(i + 1), "-of-", five(shards.size()), ".safetensors");
    write_safetensors(index.parent_path() / file, shards[i], metadata);
    for (const auto& [key, tensor] : shards[i]) out["weight_map"][key] = file;
  }
  write_file_atomic(index, out.dump(2) + "\n");
}

}  // namespace tiltflow
