// Which tensors of a file are the model. Trainers keep several sets of weights in one file and wrap
// names; what is taken follows rules that are the same for every format:
//  1. A section is a dict of tensors inside the file, or all names with one prefix when the file is
//  flat ("ema.", "model.").
//  2. Without being told, the averaged weights are taken: `ema` and its other spellings (ema_model,
//  model_ema,
//     state_dict_ema, ...), else `model` and its (state_dict, net, generator, ...), else the only
//     section there is. Several sections with unknown names are an error that lists them. A network
//     beside other modules (a loss, metrics) is taken by its prefix when it is asked for.
//  3. Inside the section, the names of wrappers are removed: module., _orig_mod., model., net., ...
//  when every tensor has
//     them, and those of torch.compile, FSDP and activation checkpointing anywhere in a name. The
//     counters of averages (n_averaged, step, ...) are left out. When only some tensors have a
//     wrapper's name, the file is refused.
// Files of this program and LoRA adapters are taken as they are.
#pragma once

#include <string>
#include <vector>

#include "tiltflow/tensor/parameters.h"

namespace tiltflow {

// Rule 2: the section to take, given what there is. Throws kBadFile ("it has: ...").
std::string choose_section(const std::vector<std::string>& sections, const std::string& where);
// Whether the name says "averaged weights".
bool is_average(std::string_view section);

struct StateDict {
  ParameterSet tensors;
  std::string section;                // "" when the file has no sections
  std::vector<std::string> sections;  // all there were
  std::string prefix;                 // what was removed from every name, "" for nothing
};

// Rules 1 to 3 for flat names. `section`: "" to choose. Throws kBadFile.
StateDict flat_state_dict(const ParameterSet& tensors, const std::string& section,
                          const std::string& where);
// Rule 3 alone.
StateDict without_wrappers(const ParameterSet& tensors, const std::string& where);

}  // namespace tiltflow
