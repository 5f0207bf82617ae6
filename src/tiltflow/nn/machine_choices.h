// What was measured on this machine and what follows from it: the ways of nn/ways and the speed of
// products. Measured once, kept in a file of the user's cache, copied into every run, so that a
// resumed run computes as it began.
#pragma once

#include <filesystem>
#include <map>
#include <optional>
#include <string>

#include "tiltflow/nn/ways.h"
#include "tiltflow/nn/ways_speed.h"

namespace tiltflow {

// What the measurements depend on: processor, instruction sets in use, versions of libtorch and of
// this program, libtorch threads, device.
using MachineKey = std::map<std::string, std::string>;
MachineKey machine_key();

struct MachineChoices {
  ProductSpeeds speeds;
  Ways ways;
};
// Text of a file. Slots and speeds that were not measured are left out.
std::string to_text(const MachineKey& key, const MachineChoices& choices);
// Nothing when the text is damaged, belongs to another key, or names what does not exist. Never
// throws.
std::optional<MachineChoices> choices_from_text(const std::string& text, const MachineKey& key);

// tiltflow/choices-<hash of the key>.json in XDG_CACHE_HOME, or in .cache of HOME; empty when
// neither is an absolute path.
std::filesystem::path choices_file(const MachineKey& key);
// Nothing when there is no such regular file, or as choices_from_text. Never throws.
std::optional<MachineChoices> read_choices(const std::filesystem::path& file,
                                           const MachineKey& key);

// What a caller needs to be measured.
struct ChoiceNeeds {
  bool speeds = false;
  bool fp32_ways = false;
  bool bf16_ways = false;
};
// Known from this process, the run that is continued (follow_choices), the cache, or measured now;
// the first process's for all. Every process of a run must ask alike. With ways needed, they come
// into force (set_ways).
const MachineChoices& machine_choices(const ChoiceNeeds& needs);

// In a run's folder.
inline std::filesystem::path choices_in(const std::filesystem::path& run) {
  return run / "kernels.json";
}
// Before a run's networks are made: what `file` holds, if it was written under the same key, goes
// before cache and measurements. A file of another machine is ignored with a message, a missing one
// without.
void follow_choices(const std::filesystem::path& file);
// Writes what this process knows; nothing when it knows nothing.
void record_choices(const std::filesystem::path& file);

}  // namespace tiltflow
