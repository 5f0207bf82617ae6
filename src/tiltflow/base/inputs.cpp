#include "tiltflow/base/inputs.h"

#include <nlohmann/json.hpp>

#include "tiltflow/base/error.h"
#include "tiltflow/base/file.h"
#include "tiltflow/base/strings.h"

namespace tiltflow {
namespace {
using Json = nlohmann::ordered_json;
}  // namespace

Inputs fingerprints_of(const std::vector<InputPath>& paths) {
  Inputs out;
  for (const InputPath& one : paths) out[one.name] = fingerprint_of(one.path, one.kind);
  return out;
}

std::string inputs_text(const Inputs& inputs) {
  Json all = Json::object();
  for (const auto& [name, f] : inputs) {
    Json files = Json::array();
    for (const FileFingerprint& file : f.files) {
      files.push_back({{"name", file.name}, {"bytes", file.bytes}, {"sha256", file.sha256}});
    }
    all[name] = {
        {"path", f.path}, {"sha256", f.sha256}, {"bytes", f.bytes}, {"files", std::move(files)}};
  }
  return all.dump(1, ' ', false, Json::error_handler_t::replace) + "\n";
}

Inputs parse_inputs(const std::string& text, const std::string& where) {
  try {
    Inputs out;
    const Json all = Json::parse(text);
    for (const auto& [name, entry] : all.items()) {
      Fingerprint f;
      f.path = entry.at("path").get<std::string>();
      f.sha256 = entry.at("sha256").get<std::string>();
      f.bytes = entry.at("bytes").get<std::uint64_t>();
      for (const Json& file : entry.at("files")) {
        f.files.push_back({file.at("name").get<std::string>(),
                           file.at("bytes").get<std::uint64_t>(),
                           file.at("sha256").get<std::string>()});
      }
      out[name] = std::move(f);
    }
    return out;
  } catch (const nlohmann::json::exception& error) {
    fail(ErrorKind::kBadFile, cat(where, ": no list of inputs (", error.what(), ")"));
  }
}

Inputs read_inputs(const std::filesystem::path& file) {
  return std::filesystem::exists(file) ? parse_inputs(read_file(file), file.string()) : Inputs{};
}

std::vector<std::string> changed_inputs(const Inputs& before, const Inputs& now) {
  std::vector<std::string> out;
  for (const auto& [name, fingerprint] : now) {
    const auto found = before.find(name);
    if (found == before.end()) continue;
    if (const std::string text = difference(found->second, fingerprint); !text.empty()) {
      out.push_back(cat(name, ": ", text));
    }
  }
  return out;
}

void require_same_inputs(const Inputs& before, const Inputs& now, const std::string& what,
                         const std::string& hint) {
  const std::vector<std::string> changes = changed_inputs(before, now);
  if (!changes.empty()) {
    fail(ErrorKind::kConfig, cat(what, " was made with other files: ", join(changes, "; ")), hint);
  }
}

}  // namespace tiltflow
