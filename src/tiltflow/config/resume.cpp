#include "tiltflow/config/resume.h"

#include <algorithm>

#include "tiltflow/base/error.h"
#include "tiltflow/base/file.h"
#include "tiltflow/base/log.h"
#include "tiltflow/base/strings.h"

namespace tiltflow {
namespace {

const FreeKey kSteps{"train.steps",
                     "cosine and linear schedules are computed over the new length from here on"};
const FreeKey kCheckpoints{"train.checkpoint_every", "from here on"};
const FreeKey kKept{"train.keep_checkpoints", "from here on"};
const FreeKey kStop{"train.stop_when", "from here on"};
const FreeKey kPrecision{"compute.precision", "products are rounded otherwise from here on"};
const FreeKey kMachine{"compute.*", "a setting of the machine; sums may be rounded otherwise"};

FreeKey item_key(const std::string& key) {
  return {key, "pieces of work of another size; sums may be rounded otherwise"};
}

// Keys of sections that a verb does not read.
FreeKeys unread(const std::vector<std::string>& patterns) {
  FreeKeys out;
  for (const std::string& pattern : patterns) {
    out.push_back({pattern, "not read here", /*read=*/false});
  }
  return out;
}

FreeKeys joined(FreeKeys a, const FreeKeys& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

// Whether both know the files that `key` (or the list `key`) names: their content decides then, not
// the path.
bool known_by_content(const Inputs& before, const Inputs& now, const std::string& key) {
  const auto count = [&](const Inputs& inputs) {
    return std::count_if(inputs.begin(), inputs.end(), [&](const auto& entry) {
      return entry.first == key || starts_with(entry.first, key + "[");
    });
  };
  return count(now) > 0 && count(before) == count(now);
}

std::string stored_config(const std::filesystem::path& file, const RunStart& start) {
  if (start.reread) {
    try {
      return start.reread(file);
    } catch (const Error&) {  // keys of another version: compared as they stand
    }
  }
  return read_file(file);
}

}  // namespace

const FreeKeys& machine_keys() {
  static const FreeKeys keys{kPrecision, kMachine};
  return keys;
}

const FreeKeys& finetune_keys() {
  static const FreeKeys keys = joined({kSteps,
                                       kCheckpoints,
                                       kKept,
                                       kStop,
                                       item_key("micro_batch"),
                                       {"evaluation.every", "from here on"},
                                       {"evaluation.samples", "from here on"},
                                       {"evaluation.ode*", "from here on"},
                                       {"check.*", "of the check after training"}},
                                      machine_keys());
  return keys;
}

FreeKeys pretrain_keys(const std::string& kind) {
  FreeKeys keys = joined({kSteps, kCheckpoints, kKept, kStop}, machine_keys());
  keys.push_back({"evaluation.*", "from here on"});
  keys.push_back({"evaluate_on", "of the judge's accuracy at the end"});
  if (kind != "gan") {
    keys.push_back(item_key("micro_batch"));  // a GAN's normalisation sees one piece at a time
  }
  return keys;
}

FreeKeys sft_keys(const std::string& batch_norm) {
  FreeKeys keys = joined({kSteps, kCheckpoints, kKept, kStop}, machine_keys());
  if (batch_norm == "frozen") {
    keys.push_back(item_key("sft.micro_batch"));  // else its statistics are of one piece
  }
  return joined(keys, unread({"targets.*", "features", "assign.*", "em.*", "align.*", "reward*",
                              "held_out*"}));
}

const FreeKeys& em_keys() {
  static const FreeKeys keys = joined(
      joined({{"em.rounds", "finished rounds stay, further ones follow"}, kCheckpoints, kKept},
             machine_keys()),
      unread({"align.*", "reward*", "held_out*"}));
  return keys;
}

const FreeKeys& assign_keys() {
  static const FreeKeys keys = joined(
      machine_keys(), unread({"sft.*", "em.*", "align.*", "train.*", "reward*", "held_out*"}));
  return keys;
}

const FreeKey* find_free(const FreeKeys& keys, const std::string& key) {
  const auto found = std::find_if(keys.begin(), keys.end(), [&](const FreeKey& one) {
    return matches_pattern(key, one.pattern);
  });
  return found == keys.end() ? nullptr : &*found;
}

Inputs read_inputs_of(const std::vector<InputPath>& paths, const FreeKeys& keys) {
  std::vector<InputPath> read;
  for (const InputPath& one : paths) {
    const FreeKey* free = find_free(keys, one.name);
    if (!free || free->read) read.push_back(one);
  }
  return fingerprints_of(read);
}

std::vector<KeyChange> require_same_start(const StoredStart& where, const RunStart& start) {
  std::vector<KeyChange> allowed;
  const std::string stored = stored_config(where.config, start);
  const Inputs before = read_inputs(where.inputs);
  std::vector<std::string> wrong;
  for (const KeyChange& change : stored == start.config
                                     ? std::vector<KeyChange>{}
                                     : config_differences(stored, start.config)) {
    if (find_free(start.free, change.key)) {
      allowed.push_back(change);
    } else if (!known_by_content(before, start.inputs, change.key)) {
      wrong.push_back(cat(change.key, " was ", change.before, ", now ", change.now));
    }
  }
  if (!wrong.empty()) {
    fail(ErrorKind::kConfig, cat(where.what, " has another configuration: ", join(wrong, "; ")),
         "continue with the same configuration, or start afresh in another folder with --out");
  }
  Inputs held;
  for (const auto& [name, fingerprint] : start.inputs) {
    if (!find_free(start.free, name)) held[name] = fingerprint;
  }
  if (!start.accept_inputs) {
    require_same_inputs(before, held, where.what,
                        "put the files back, start afresh in another folder with --out, or go on "
                        "with these files: --accept-inputs");
  }
  return allowed;
}

void store_start(const StoredStart& where, const RunStart& start,
                 const std::vector<KeyChange>& changes) {
  for (const KeyChange& change : changes) {
    log_info(cat("resuming with ", change.key, " = ", change.now, " (was ", change.before,
                 "): ", find_free(start.free, change.key)->meaning));
  }
  if (!std::filesystem::exists(where.config) || read_file(where.config) != start.config) {
    write_file_atomic(where.config, start.config);
  }
  write_file_atomic(where.inputs, inputs_text(start.inputs));
}

}  // namespace tiltflow
