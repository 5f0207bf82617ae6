#include "tiltflow/train/run.h"

#include <algorithm>
#include <vector>

#include "tiltflow/base/error.h"
#include "tiltflow/base/file.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/io/image.h"
#include "tiltflow/io/safetensors.h"
#include "tiltflow/nn/machine_choices.h"
#include "tiltflow/tensor/aten.h"
#include "tiltflow/tensor/process_group.h"

namespace tiltflow {
namespace {

namespace fs = std::filesystem;

std::string step_name(std::int64_t step) { return "step-" + std::string(6 - std::min<std::size_t>(6, std::to_string(step).size()), '0') + std::to_string(step); }

// Complete checkpoints, oldest first.
std::vector<fs::path> complete_checkpoints(const fs::path& folder) {
  std::vector<fs::path> out;
  std::error_code code;
  for (const auto& entry : fs::directory_iterator(folder, code)) {
    if (starts_with(entry.path().filename().string(), "step-") && fs::exists(entry.path() / "DONE")) out.push_back(entry.path());
  }
  std::sort(out.begin(), out.end(), [](const fs::path& a, const fs::path& b) {
    return std::stoll(a.filename().string().substr(5)) < std::stoll(b.filename().string().substr(5));
  });
  return out;
}

std::string state_of(const Checkpoint& checkpoint) {
  nlohmann::ordered_json state{{"step", checkpoint.step}};
  if (!checkpoint.followed) state["followed"] = false;
  return state.dump(1) + "\n";
}

bool holds(const fs::path& folder, const Checkpoint& checkpoint) {
  return fs::exists(folder / "DONE") && fs::exists(folder / "state.json") && read_file(folder / "state.json") == state_of(checkpoint);
}

std::string first_difference(const std::string& a, const std::string& b) {
  const std::vector<std::string> left = split(a, '\n'), right = split(b, '\n');
  for (std::size_t i = 0; i < std::max(left.size(), right.size()); ++i) {
    const std::string l = i < left.size() ? left[i] : "(nothing)", r = i < right.size() ? right[i] : "(nothing)";
    if (l != r) return cat("stored `", l, "`, now `", r, "`");
  }
  return "";
}

}  // namespace

Run::Run(fs::path directory, const std::string& config_toml, bool resume) : directory_(std::move(directory)), writes_(world_rank() == 0) {
  if (!writes_) {
    barrier();  // the first process has made the folder, or has failed
    return;
  }
  const fs::path config = directory_ / "config.toml";
  if (fs::exists(config)) {
    if (!resume) fail(ErrorKind::kConfig, cat("the folder ", directory_.string(), " already holds a run"), "continue it with --resume, or choose another folder with --out");
    if (const std::string stored = read_file(config); stored != config_toml) {
      fail(ErrorKind::kConfig, cat("the run in ", directory_.string(), " has another configuration: ", first_difference(stored, config_toml)),
           "resume with the same configuration, or start afresh in another folder with --out");
    }
  } else if (fs::exists(directory_) && !fs::is_empty(directory_) && !fs::exists(directory_ / "checkpoints")) {
    fail(ErrorKind::kConfig, cat("the folder ", directory_.string(), " exists and is not a run"), "choose an empty or new folder with --out");
  }
  make_directories(directory_ / "checkpoints");
  make_directories(samples());
  if (!fs::exists(config)) write_file_atomic(config, config_toml);
  record_choices(choices_in(directory_));
  barrier();
}

bool Run::has_checkpoint() const {
  // The first process decides: it may save while the others still look.
  return !all_gather(complete_checkpoints(directory_ / "checkpoints").empty() ? "" : "yes").front().empty();
}

std::optional<Checkpoint> Run::latest() {
  barrier();  // what the first process saved before is there
  metrics_.reset();  // the file is about to be replaced
  events_.reset();
  const std::vector<fs::path> done = complete_checkpoints(directory_ / "checkpoints");
  std::optional<Checkpoint> out;
  if (!done.empty()) {
    out.emplace();
    try {
      const nlohmann::json state = nlohmann::json::parse(read_file(done.back() / "state.json"));
      out->step = state.at("step").get<std::int64_t>();
      out->followed = state.value("followed", true);
    } catch (const nlohmann::json::exception&) {
      fail(ErrorKind::kBadFile, cat((done.back() / "state.json").string(), " is broken"), "delete this checkpoint folder to resume from the one before");
    }
    for (const auto& entry : fs::directory_iterator(done.back())) {
      if (entry.path().extension() == ".safetensors") out->parts[entry.path().stem().string()] = read_safetensors(entry.path()).tensors;
    }
  }
  first_step_ = !out ? 0 : out->followed ? out->step + 1 : out->step;
  shown_again_ = nlohmann::ordered_json::object();
  barrier();  // nobody reads on while the first process writes
  if (!writes_) return out;
  // Lines after the checkpoint will be written again; so will all but the first of its step when what follows the step is not done.
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
  const fs::path folder = directory_ / "checkpoints", final_name = folder / step_name(checkpoint.step), temporary = folder / ("tmp-" + step_name(checkpoint.step));
  if (!writes_ || holds(final_name, checkpoint)) return;
  fs::remove_all(temporary);
  fs::remove_all(final_name);
  make_directories(temporary);
  try {
    for (const auto& [name, tensors] : checkpoint.parts) write_safetensors(temporary / (name + ".safetensors"), tensors);
    write_file_atomic(temporary / "state.json", state_of(checkpoint));
    write_file_atomic(temporary / "DONE", "");
    if (metrics_) metrics_->sync();
    fs::rename(temporary, final_name);
  } catch (...) {
    std::error_code ignored;
    fs::remove_all(temporary, ignored);
    throw;
  }
  sync_directory(folder);
  std::vector<fs::path> done = complete_checkpoints(folder);
  for (std::size_t i = 0; i + static_cast<std::size_t>(std::max<std::int64_t>(1, keep)) < done.size(); ++i) fs::remove_all(done[i]);
}

void Run::open_logs() {
  if (metrics_) return;
  metrics_ = std::make_unique<JsonLines>(directory_ / "metrics.jsonl");
  events_ = std::make_unique<EventWriter>(directory_, first_step_);
  for (const auto& [name, value] : shown_again_.items()) if (name != "step") events_->scalar(event_tag(name), first_step_, number_from_json(value));
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
  write_png(samples() / cat(name, "-", step_name(step), ".png"), image, {{"Software", "tiltflow"}, {"step", std::to_string(step)}});
  if (events_) events_->image("pictures/" + name, step, image);
}

}  // namespace tiltflow
