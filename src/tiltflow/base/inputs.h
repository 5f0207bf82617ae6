// The files that a piece of work reads, by name and content: written beside its results, compared
// before they are used again.
#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "tiltflow/base/fingerprint.h"

namespace tiltflow {

struct InputPath {
  std::string name;  // a configuration key or a flag, "model.file"
  std::filesystem::path path;
  PathKind kind = PathKind::kAll;
};
using Inputs = std::map<std::string, Fingerprint>;

Inputs fingerprints_of(const std::vector<InputPath>& paths);

// One JSON object: name to path, sha256, bytes, files.
std::string inputs_text(const Inputs& inputs);
// Throws kBadFile.
Inputs parse_inputs(const std::string& text, const std::string& where);
Inputs read_inputs(
    const std::filesystem::path& file);  // empty when there is no file: runs of earlier versions

// What changed of the inputs that both name, one sentence each: "model.file: /m.safetensors has
// another content (...)". A path that changed and has the same content is no change.
std::vector<std::string> changed_inputs(const Inputs& before, const Inputs& now);
// Throws kConfig with these sentences; `what` reads them: "the run in DIR".
void require_same_inputs(const Inputs& before, const Inputs& now, const std::string& what,
                         const std::string& hint);

}  // namespace tiltflow
