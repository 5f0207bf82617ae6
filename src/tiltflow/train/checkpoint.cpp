#include "tiltflow/train/checkpoint.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "tiltflow/base/error.h"
#include "tiltflow/base/file.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/io/safetensors.h"

namespace tiltflow {
namespace {

namespace fs = std::filesystem;

const std::string kPrefix = "step-";
constexpr std::size_t kDigits = 6;
constexpr std::size_t kMostDigits = 15;

// The step of a folder that is exactly named as step_name does; nothing for "step-best" and
// "step-000005-good".
std::optional<std::int64_t> step_of(const std::string& name) {
  if (!starts_with(name, kPrefix)) return std::nullopt;
  const std::string digits = name.substr(kPrefix.size());
  const bool number =
      std::all_of(digits.begin(), digits.end(), [](char c) { return c >= '0' && c <= '9'; });
  if (!number || digits.size() < kDigits || digits.size() > kMostDigits) return std::nullopt;
  const std::int64_t step = std::stoll(digits);
  if (step_name(step) != name) return std::nullopt;
  return step;
}

}  // namespace

std::string step_name(std::int64_t step) {
  const std::string digits = std::to_string(step);
  return kPrefix + std::string(kDigits - std::min(kDigits, digits.size()), '0') + digits;
}

std::vector<CheckpointFolder> complete_checkpoints(const fs::path& folder) {
  std::vector<CheckpointFolder> out;
  std::error_code code;
  for (const auto& entry : fs::directory_iterator(folder, code)) {
    const std::optional<std::int64_t> step = step_of(entry.path().filename().string());
    if (step && fs::exists(entry.path() / "DONE")) out.push_back({*step, entry.path()});
  }
  std::sort(out.begin(), out.end(),
            [](const CheckpointFolder& a, const CheckpointFolder& b) { return a.step < b.step; });
  return out;
}

Checkpoint read_checkpoint(const CheckpointFolder& folder) {
  Checkpoint out;
  const fs::path state = folder.path / "state.json";
  const nlohmann::json json =
      nlohmann::json::parse(read_file(state), nullptr, /*allow_exceptions=*/false);
  const bool named = json.is_object() && json.contains("step") && json["step"].is_number_integer();
  if (!named) fail(ErrorKind::kBadFile, cat(state.string(), " is broken"));
  out.step = json["step"].get<std::int64_t>();
  out.followed = json.value("followed", true);
  if (out.step != folder.step) {
    fail(ErrorKind::kBadFile, cat(state.string(), " is of step ", out.step));
  }
  const nlohmann::json parts = json.value("parts", nlohmann::json::object());
  for (const auto& [name, bytes] : parts.items()) {
    const fs::path file = folder.path / (name + ".safetensors");
    if (!fs::exists(file)) fail(ErrorKind::kBadFile, cat(file.string(), " is missing"));
    if (fs::file_size(file) != bytes.get<std::uintmax_t>()) {
      fail(ErrorKind::kBadFile,
           cat(file.string(), " has ", fs::file_size(file), " bytes of ", bytes.dump()));
    }
  }
  for (const auto& entry : fs::directory_iterator(folder.path)) {
    if (entry.path().extension() == ".safetensors") {
      out.parts[entry.path().stem().string()] = read_safetensors(entry.path()).tensors;
    }
  }
  return out;
}

bool holds(const fs::path& folder, const Checkpoint& checkpoint) {
  const fs::path stored = folder / step_name(checkpoint.step);
  if (!fs::exists(stored / "DONE") || !fs::exists(stored / "state.json")) return false;
  const nlohmann::json state =
      nlohmann::json::parse(read_file(stored / "state.json"), nullptr, /*allow_exceptions=*/false);
  return state.is_object() && state.value("followed", true) == checkpoint.followed;
}

void write_checkpoint(const fs::path& folder, const Checkpoint& checkpoint) {
  const fs::path final_name = folder / step_name(checkpoint.step);
  const fs::path temporary = folder / ("tmp-" + step_name(checkpoint.step));
  fs::remove_all(temporary);
  fs::remove_all(final_name);
  make_directories(temporary);
  try {
    nlohmann::ordered_json state{{"step", checkpoint.step}};
    if (!checkpoint.followed) state["followed"] = false;
    for (const auto& [name, tensors] : checkpoint.parts) {
      const fs::path file = temporary / (name + ".safetensors");
      write_safetensors(file, tensors);
      state["parts"][name] = fs::file_size(file);
    }
    write_file_atomic(temporary / "state.json", state.dump(1) + "\n");
    write_file_atomic(temporary / "DONE", "");
    fs::rename(temporary, final_name);
  } catch (...) {
    std::error_code ignored;
    fs::remove_all(temporary, ignored);
    throw;
  }
  sync_directory(folder);
}

void set_aside(const CheckpointFolder& folder) {
  const fs::path aside =
      folder.path.parent_path() / cat("damaged-", folder.path.filename().string());
  fs::remove_all(aside);
  fs::rename(folder.path, aside);
}

}  // namespace tiltflow
