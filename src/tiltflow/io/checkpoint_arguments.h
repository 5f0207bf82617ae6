// What a trainer's checkpoint says beside its tensors, as plain text: `args.path_type` = "GVP". The
// containers may be dicts, argparse.Namespace, OmegaConf, EasyDict, ConfigDict, dataclasses or any
// other object with named values; they are data (see pickle.h), whatever their class. Optimisers,
// random states and tensors are left out. The attributes of a bare state dict count too: that is
// where write_torch_file puts them.
#pragma once

#include <map>
#include <string>

#include "tiltflow/io/torch_file.h"

namespace tiltflow {

// Keys are the dotted ways from the root. `section`: the dict of tensors that was taken, whose
// attributes count like the root's. Bounded: at most 2,000 values, eight levels deep.
std::map<std::string, std::string> checkpoint_arguments(const PickleNode& root,
                                                        const PickleNode* section = nullptr);

}  // namespace tiltflow
