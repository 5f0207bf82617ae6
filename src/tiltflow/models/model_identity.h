// The identity of a velocity model's file: family, path, prediction, constructor arguments, each
// with where it was said.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "tiltflow/io/safetensors.h"
#include "tiltflow/models/stated_identity.h"

namespace tiltflow {

// Arguments of the network's constructor: `overrides`, else the file's own metadata, else for a SiT
// its trainer's. Throws kBadFile when places contradict each other about what does not show in the
// tensors.
std::map<std::string, Stated> constructor_arguments(
    const TensorFile& file, const std::string& family, const StatedIdentity& stated,
    const std::map<std::string, std::string>& overrides, const std::string& where);

struct IdentityRow {
  std::string name;     // "family", "path", "prediction" or the name of an argument
  std::string value;    // "" when nothing says it
  std::string source;   // "its tensors", "args.model = 'SiT-S/2'"
  std::string problem;  // not understood or contradictory
};
// Every row that is known of a velocity model, in a fixed order; nothing for other files.
// `overrides` are arguments, "path" and "prediction" among them. Throws like loading does.
std::vector<IdentityRow> model_identity(const TensorFile& file,
                                        const std::map<std::string, std::string>& overrides,
                                        const std::string& where);

// Metadata that says it in our entries alone; entries that are no part of the identity are kept.
std::map<std::string, std::string> identity_metadata(const TensorFile& file,
                                                     const std::vector<IdentityRow>& identity);

// "Linear", "GVP", "VP": the official trainer's names of our paths.
std::string official_path_name(const std::string& path);

}  // namespace tiltflow
