// A run is a directory: config.toml (resolved), metrics.jsonl (source of truth), events.out.tfevents.*, checkpoints/,
// samples/, report.html. A checkpoint counts only when its DONE marker exists; it appears under its name complete.
#pragma once

#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "tiltflow/io/json_lines.h"
#include "tiltflow/io/tensorboard.h"
#include "tiltflow/tensor/parameters.h"

namespace tiltflow {

struct Checkpoint {
  std::int64_t step = 0;                      // steps completed
  std::map<std::string, ParameterSet> parts;  // "weights", "average", "optimizer", "objective"
  bool followed = true;                       // what follows the step (evaluation, validation) is done too
};

class Run {
 public:
  // Creates the directory, or continues it when `resume` and it holds a run with the same configuration. Throws kConfig
  // when the directory has a run and `resume` is false, or when the stored configuration differs (naming the keys).
  Run(std::filesystem::path directory, const std::string& config_toml, bool resume);

  const std::filesystem::path& directory() const { return directory_; }
  std::filesystem::path samples() const { return directory_ / "samples"; }

  bool writes() const { return writes_; }  // only the first of several processes does; elsewhere log, save and picture do nothing
  bool has_checkpoint() const;
  // The newest complete checkpoint; also forgets metrics that were logged after it.
  std::optional<Checkpoint> latest();
  // Keeps the newest `keep` checkpoints.
  void save(const Checkpoint& checkpoint, std::int64_t keep);

  void log(std::int64_t step, const std::map<std::string, double>& metrics);
  // A line of words, e.g. a warning, beside the metrics.
  void note(std::int64_t step, const std::vector<std::pair<std::string, std::string>>& words);
  void histogram(const std::string& name, std::int64_t step, const at::Tensor& values);          // event file only
  void picture(const std::string& name, std::int64_t step, const at::Tensor& image);  // samples/NAME-step-000100.png + event

 private:
  void open_logs();
  std::filesystem::path directory_;
  bool writes_ = true;
  std::int64_t first_step_ = 0;  // that this process logs; a continued run repeats what came after its checkpoint
  nlohmann::ordered_json shown_again_;    // a metrics line of that step that stays, for the new event file
  std::unique_ptr<JsonLines> metrics_;
  std::unique_ptr<EventWriter> events_;
};

}  // namespace tiltflow
