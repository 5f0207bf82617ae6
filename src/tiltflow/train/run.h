// A run is a directory: config.toml (resolved), inputs.json (fingerprints of the files it reads),
// metrics.jsonl (source of truth), events.out.tfevents.*, checkpoints/, samples/, report.html. A
// checkpoint counts only when its DONE marker exists; it appears under its name complete.
#pragma once

#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "tiltflow/base/folder_claim.h"
#include "tiltflow/config/resume.h"
#include "tiltflow/io/json_lines.h"
#include "tiltflow/io/tensorboard.h"
#include "tiltflow/tensor/parameters.h"
#include "tiltflow/train/checkpoint.h"

namespace tiltflow {

// Where a run directory keeps what it was started with.
StoredStart stored_start(const std::filesystem::path& run);

// Throws kConfig when the folder holds files and no run.
void require_own_folder(const std::filesystem::path& folder);
// What Run's constructor would refuse for `start`, without touching the folder: files of somebody
// else, a run that is not to be resumed, another configuration or other inputs, fewer steps than
// are done. Throws kConfig.
void require_startable(const std::filesystem::path& folder, const RunStart& start);

class Run {
 public:
  // Claims the directory for this process and creates the run, or continues it when `resume` and it
  // holds a run with the same configuration and inputs, `free` keys aside. A run that has trained
  // nothing yet is started again. Throws kConfig when the directory has a run and `resume` is
  // false, or when the stored one differs (naming keys and files); kFailure when another process
  // writes there. Of several processes only the first reads `start`.
  Run(std::filesystem::path directory, const RunStart& start);
  Run(std::filesystem::path directory, const std::string& config_toml, bool resume)
      : Run(std::move(directory), RunStart{config_toml, {}, resume}) {}

  const std::filesystem::path& directory() const { return directory_; }
  std::filesystem::path samples() const { return directory_ / "samples"; }

  bool writes() const {
    return writes_;
  }  // only the first of several processes does; elsewhere log, save and picture do nothing
  bool has_checkpoint() const;
  // The newest complete checkpoint that can be read, with a warning about damaged ones; also
  // forgets metrics that were logged after it. Throws kBadFile when there are checkpoints and none
  // can be read.
  std::optional<Checkpoint> latest();
  // Keeps the newest `keep` checkpoints.
  void save(const Checkpoint& checkpoint, std::int64_t keep);
  // Free keys that differ from those the run was stored with.
  const std::vector<KeyChange>& changes() const { return changes_; }
  // Renames DIR/NAME.EXT, which an earlier and shorter training has left, to
  // DIR/NAME-step-000100.EXT.
  void retire(const std::string& file, std::int64_t step);

  void log(std::int64_t step, const std::map<std::string, double>& metrics);
  // A line of words, e.g. a warning, beside the metrics.
  void note(std::int64_t step, const std::vector<std::pair<std::string, std::string>>& words);
  void histogram(const std::string& name, std::int64_t step,
                 const at::Tensor& values);  // event file only
  void picture(const std::string& name, std::int64_t step,
               const at::Tensor& image);  // samples/NAME-step-000100.png + event

 private:
  void open_logs();
  void begin(const RunStart& start);
  std::filesystem::path directory_;
  bool writes_ = true;
  std::optional<FolderClaim> claim_;
  std::vector<KeyChange> changes_;
  std::int64_t first_step_ =
      0;  // that this process logs; a continued run repeats what came after its checkpoint
  nlohmann::ordered_json
      shown_again_;  // a metrics line of that step that stays, for the new event file
  std::unique_ptr<JsonLines> metrics_;
  std::unique_ptr<EventWriter> events_;
};

}  // namespace tiltflow
