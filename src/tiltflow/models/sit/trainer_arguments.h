// A trainer's arguments as constructor arguments of a SiT. What shows in the tensors is taken from
// them, and arguments that say otherwise are named in a warning; the number of heads does not show,
// so there arguments count and must agree.
#pragma once

#include <map>
#include <string>

#include "tiltflow/models/stated_identity.h"
#include "tiltflow/tensor/parameters.h"

namespace tiltflow {

// Arguments to add to `given` (those of the file's own metadata and of the user, which are
// stronger), with where each was said. Throws kBadFile for architectures that only look like SiT
// (DiT, rotary embeddings, ...) and for numbers of heads that contradict each other. `where` names
// the file.
std::map<std::string, Stated> sit_trainer_arguments(const ParameterSet& tensors,
                                                    const StatedIdentity& stated,
                                                    const std::map<std::string, std::string>& given,
                                                    const std::string& where);

}  // namespace tiltflow
