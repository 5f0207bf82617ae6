#include "tiltflow/train/run.h"

#include <algorithm>
#include <cstdlib>
#include <vector>

#include "tiltflow/base/error.h"
#include "tiltflow/base/file.h"
#include "tiltflow/base/log.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/io/image.h"
#include "tiltflow/nn/machine_choices.h"
#include "tiltflow/tensor/aten.h"
#include "tiltflow/tensor/process_group.h"

namespace tiltflow {
namespace {

namespace fs = std::filesystem;

fs::path checkpoints_of(const fs::path& run) { return run / "checkpoints"; }

// A run from its first step on, or a finished one; what failed before it can be started again.
bool has_trained(const fs::path& run) {
  const std::vector<CheckpointFolder> done = complete_checkpoints(checkpoints_of(run));
  return fs::exists(run / "model.safetensors") || (!done.empty() && done.back().step > 0);
}

// Whether the folder holds anything but the claim.
bool holds_something(const fs::path& folder) {
  std::error_code code;
  const fs::directory_iterator entries(folder, code);
  return std::any_of(begin(entries), end(entries),
                     [](const auto& entry) { return !is_claim(entry.path()); });
}

bool is_same_run(const fs::path& run, const RunStart& start) {
  try {
    require_same_start(stored_start(run), start);
    return true;
  } catch (const Error&) {
    return false;
  }
}

// A run can end earlier than it was meant to, not before the steps that it has done.
void require_length(const fs::path& run, const std::vector<KeyChange>& changes) {
  const std::vector<CheckpointFolder> done = complete_checkpoints(checkpoints_of(run));
  const std::int64_t step = done.empty() ? 0 : done.back().step;
  for (const KeyChange& change : changes) {
    if (change.key != "train.steps" || std::atoll(change.now.c_str()) >= step) continue;
    fail(ErrorKind::kConfig,
         cat("train.steps = ", change.now, ": the run in ", run.string(), " has done ", step,
             " steps already"),
         cat("set train.steps to ", step, " or more"));
  }
}

// What a start that trained nothing has left.
void forget_start(const fs::path& run) {
  for (const CheckpointFolder& folder : complete_checkpoints(checkpoints_of(run))) {
    fs::remove_all(folder.path);
  }
  for (const char* file : {"config.toml", "inputs.json", "metrics.jsonl"}) fs::remove(run / file);
  std::vector<fs::path> rest;
  for (const auto& entry : fs::directory_iterator(run)) {
    if (starts_with(entry.path().filename().string(), "events.out.tfevents.")) {
      rest.push_back(entry.path());
    }
  }
  std::error_code none;
  for (const auto& entry : fs::directory_iterator(run / "samples", none)) {
    if (ends_with(entry.path().filename().string(), cat(step_name(0), ".png"))) {
      rest.push_back(entry.path());
    }
  }
  for (const fs::path& file : rest) fs::remove(file);
}

}  // namespace

StoredStart stored_start(const fs::path& run) {
  return {cat("the run in ", run.string()), run / "config.toml", run / "inputs.json"};
}

void require_own_folder(const fs::path& folder) {
  const bool begun = fs::exists(folder / "config.toml") || fs::exists(checkpoints_of(folder));
  if (begun || !holds_something(folder)) return;
  fail(ErrorKind::kConfig, cat("the folder ", folder.string(), " exists and is not a run"),
       "choose an empty or new folder with --out");
}

namespace {

// The free keys that differ in the run that has trained here.
std::vector<KeyChange> require_same_run(const fs::path& run, const RunStart& start) {
  if (!start.resume) {
    fail(ErrorKind::kConfig, cat("the folder ", run.string(), " already holds a run"),
         "continue it with --resume, or choose another folder with --out");
  }
  std::vector<KeyChange> changes = require_same_start(stored_start(run), start);
  require_length(run, changes);
  return changes;
}

}  // namespace

void require_startable(const fs::path& folder, const RunStart& start) {
  require_own_folder(folder);
  if (has_trained(folder)) require_same_run(folder, start);
}

Run::Run(fs::path directory, const RunStart& start)
    : directory_(std::move(directory)), writes_(world_rank() == 0) {
  if (writes_) begin(start);
  barrier();  // the first process has made the folder, or has failed
}

void Run::begin(const RunStart& start) {
  const fs::path config = directory_ / "config.toml";
  require_own_folder(directory_);
  claim_.emplace(directory_);
  if (has_trained(directory_)) {
    changes_ = require_same_run(directory_, start);
  } else if (fs::exists(config) && !(start.resume && is_same_run(directory_, start))) {
    log_info(cat("the run in ", directory_.string(),
                 " was left before its first checkpoint: it starts anew"));
    forget_start(directory_);
  }
  make_directories(checkpoints_of(directory_));
  make_directories(samples());
  store_start(stored_start(directory_), start, changes_);
  record_choices(choices_in(directory_));
}

bool Run::has_checkpoint() const {
  // The first process decides: it may save while the others still look.
  return !all_gather(complete_checkpoints(checkpoints_of(directory_)).empty() ? "" : "yes")
              .front()
              .empty();
}

namespace {

// The newest checkpoint that can be read; those that cannot are set aside.
std::optional<Checkpoint> newest_whole(const fs::path& folder) {
  std::vector<CheckpointFolder> done = complete_checkpoints(folder);
  std::vector<std::string> damaged;
  for (; !done.empty(); done.pop_back()) {
    try {
      Checkpoint out = read_checkpoint(done.back());
      for (const std::string& reason : damaged) {
        log_warn(
            cat("a damaged checkpoint is left out: ", reason, "; continuing from step ", out.step));
      }
      return out;
    } catch (const Error& error) {
      damaged.emplace_back(error.what());
    }
  }
  if (damaged.empty()) return std::nullopt;
  fail(ErrorKind::kBadFile,
       cat("no checkpoint in ", folder.string(), " can be read:\n  ", join(damaged, "\n  ")),
       "put a copy of one there, or start afresh in another folder with --out");
}

}  // namespace

std::optional<Checkpoint> Run::latest() {
  barrier();         // what the first process saved before is there
  metrics_.reset();  // the file is about to be replaced
  events_.reset();
  const std::optional<Checkpoint> out = newest_whole(checkpoints_of(directory_));
  first_step_ = !out ? 0 : out->followed ? out->step + 1 : out->step;
  shown_again_ = nlohmann::ordered_json::object();
  barrier();  // nobody reads on while the first process writes
  if (!writes_) return out;
  for (const CheckpointFolder& folder : complete_checkpoints(checkpoints_of(directory_))) {
    if (out && folder.step > out->step) set_aside(folder);
  }
  // Lines after the checkpoint will be written again; so will all but the first of its step when
  // what follows the step is not done.
  const fs::path metrics = directory_ / "metrics.jsonl";
  std::string kept;
  bool seen = false;
  for (const auto& line : read_json_lines(metrics)) {
    const std::int64_t step = line.value("step", std::int64_t{0});
    const bool again = !out || step > out->step || (step == out->step && seen && !out->followed);
    seen = seen || (out && step == out->step);
    if (!again) kept += line.dump() + "\n";
    if (!again && step == first_step_) shown_again_ = line;
  }
  if (fs::exists(metrics)) write_file_atomic(metrics, kept);
  return out;
}

void Run::save(const Checkpoint& checkpoint, std::int64_t keep) {
  const fs::path folder = checkpoints_of(directory_);
  if (!writes_ || holds(folder, checkpoint)) return;
  if (metrics_) metrics_->sync();
  write_checkpoint(folder, checkpoint);
  const std::vector<CheckpointFolder> done = complete_checkpoints(folder);
  for (std::size_t i = 0;
       i + static_cast<std::size_t>(std::max<std::int64_t>(1, keep)) < done.size(); ++i) {
    fs::remove_all(done[i].path);
  }
}

void Run::retire(const std::string& file, std::int64_t step) {
  const fs::path old = directory_ / file;
  if (!writes_ || !fs::exists(old)) return;
  const fs::path name =
      directory_ / cat(old.stem().string(), "-", step_name(step), old.extension().string());
  fs::rename(old, name);
  log_info(cat(old.string(), " is of the model after step ", step, ": kept as ",
               name.filename().string()));
}

void Run::open_logs() {
  if (metrics_) return;
  metrics_ = std::make_unique<JsonLines>(directory_ / "metrics.jsonl");
  events_ = std::make_unique<EventWriter>(directory_, first_step_);
  for (const auto& [name, value] : shown_again_.items()) {
    if (name != "step") events_->scalar(event_tag(name), first_step_, number_from_json(value));
  }
}

void Run::note(std::int64_t step, const std::vector<std::pair<std::string, std::string>>& words) {
  if (!writes_) return;
  open_logs();
  nlohmann::ordered_json line{{"step", step}};
  for (const auto& [name, text] : words) line[name] = text;
  metrics_->write(line);
}

void Run::log(std::int64_t step, const std::map<std::string, double>& metrics) {
  if (!writes_) return;
  open_logs();
  nlohmann::ordered_json line{{"step", step}};
  for (const auto& [name, value] : metrics) line[name] = json_number(value);
  metrics_->write(line);
  for (const auto& [name, value] : metrics) events_->scalar(event_tag(name), step, value);
}

void Run::histogram(const std::string& name, std::int64_t step, const at::Tensor& values) {
  if (events_) events_->histogram(event_tag(name), step, values);
}

void Run::picture(const std::string& name, std::int64_t step, const at::Tensor& image) {
  if (!writes_) return;
  write_png(samples() / cat(name, "-", step_name(step), ".png"), image,
            {{"Software", "tiltflow"}, {"step", std::to_string(step)}});
  if (events_) events_->image("pictures/" + name, step, image);
}

}  // namespace tiltflow
