#include "tiltflow/nn/machine_choices.h"

#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <torch/version.h>

#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>

#include "tiltflow/base/error.h"
#include "tiltflow/base/file.h"
#include "tiltflow/base/log.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/nn/kernels/kernels.h"
#include "tiltflow/tensor/aten.h"
#include "tiltflow/tensor/device.h"
#include "tiltflow/tensor/process_group.h"

namespace tiltflow {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

constexpr const char* kFormat = "1";           // of the file, and of how things are measured
constexpr std::size_t kLargestFile = 1 << 16;  // bytes; ours have about four thousand
constexpr double kLargestSpeed = 1e9;          // GFLOP/s

std::string environment(const char* name) {
  const char* value = std::getenv(name);
  return value ? value : "";
}

std::string processor() {
  std::ifstream file("/proc/cpuinfo");
  std::string line;
  std::string out;
  for (const char* wanted :
       {"model name", "CPU implementer", "CPU part", "cpu family", "model\t", "stepping"}) {
    file.clear();
    file.seekg(0);
    while (std::getline(file, line)) {
      if (!starts_with(line, wanted)) continue;
      out += (out.empty() ? "" : " / ") + line.substr(std::min(line.size(), line.find(':') + 2));
      break;
    }
  }
  return out;
}

std::uint64_t hash_of(const std::string& text) {  // FNV-1a
  std::uint64_t hash = 14695981039346656037u;
  for (const char c : text) hash = (hash ^ static_cast<unsigned char>(c)) * 1099511628211u;
  return hash;
}

// A file that is opened only when it is an ordinary one of sensible size: a pipe would never end.
std::optional<std::string> text_of(const fs::path& file) {
  try {
    std::error_code error;
    if (!fs::is_regular_file(file, error) || fs::file_size(file) > kLargestFile) {
      return std::nullopt;
    }
    return read_file(file, kLargestFile);
  } catch (const std::exception&) {
    return std::nullopt;
  }
}

void read_speeds(const Json& from, ProductSpeeds& to) {
  for (const auto& [name, target] : {std::pair{"fp32", &to.fp32}, std::pair{"bf16", &to.bf16}}) {
    const double value = from.at(name).get<double>();
    if (!(value > 0 && value < kLargestSpeed)) fail(ErrorKind::kBadFile, "speeds are positive");
    *target = value;
  }
}

void read_ways(const Json& from, Ways& to) {
  std::size_t known = 0;
  for (std::size_t i = 0; i < way_slots().size(); ++i) {
    const WaySlot& slot = way_slots()[i];
    const auto found = from.find(slot.name);
    if (found == from.end()) continue;
    bool accepted = false;
    for (const std::uint8_t option : slot.options) {
      if (option_name(slot, option) != found->get<std::string>()) continue;
      to.choose(i, option);
      accepted = true;
    }
    if (!accepted) fail(ErrorKind::kBadFile, cat(slot.name, ": unknown way"));
    ++known;
  }
  if (known != from.size()) fail(ErrorKind::kBadFile, "unknown choices");
}

struct State {
  MachineKey key;
  MachineChoices choices;
  ChoiceNeeds asked;  // what `choices` holds
  fs::path followed;
};
State& state() {
  static State state;
  return state;
}

bool covers(const ChoiceNeeds& asked, const ChoiceNeeds& needs) {
  return (asked.speeds || !needs.speeds) && (asked.fp32_ways || !needs.fp32_ways) &&
         (asked.bf16_ways || !needs.bf16_ways);
}

bool knows(const MachineChoices& choices, const ChoiceNeeds& needs) {
  const bool speeds = !needs.speeds || choices.speeds.fp32 > 0;
  return speeds && (!needs.fp32_ways || choices.ways.complete(false)) &&
         (!needs.bf16_ways || choices.ways.complete(true));
}

MachineChoices measured(MachineChoices choices, const ChoiceNeeds& needs) {
  if (needs.speeds && choices.speeds.fp32 == 0) choices.speeds = measure_product_speeds();
  if (needs.fp32_ways) choices.ways = measured_ways(choices.ways, false);
  if (needs.bf16_ways) choices.ways = measured_ways(choices.ways, true);
  return choices;
}

void keep(const fs::path& file, const std::string& text) {
  if (file.empty()) return;
  try {
    make_directories(file.parent_path());
    write_file_atomic(file, text);
  } catch (const std::exception& error) {  // measured again next time
    log_debug(cat("choices for this machine are not kept: ", error.what()));
  }
}

// What `more` has and `known` has not.
void complete(MachineChoices& known, const MachineChoices& more) {
  if (known.speeds.fp32 == 0) known.speeds = more.speeds;
  for (std::size_t i = 0; i < way_slots().size(); ++i) {
    if (more.ways.measured(i) && !known.ways.measured(i)) known.ways.choose(i, more.ways.chosen(i));
  }
}

MachineChoices decided(const MachineKey& key, MachineChoices known, const ChoiceNeeds& needs) {
  if (knows(known, needs)) return known;
  const fs::path cache = choices_file(key);
  if (const auto kept = read_choices(cache, key)) complete(known, *kept);
  if (knows(known, needs)) return known;
  const MachineChoices found = measured(known, needs);
  if (const auto kept = read_choices(cache, key)) {
    complete(known, *kept);  // another process was faster: agree with it
  }
  complete(known, found);
  keep(cache, to_text(key, known));
  return known;
}

// Of the first process, for all: they may sit on machines that differ.
MachineChoices shared(const MachineKey& key, const MachineChoices& choices) {
  const std::string text = all_gather(world_rank() == 0 ? to_text(key, choices) : "").front();
  const auto received = choices_from_text(text, Json::parse(text).at("key").get<MachineKey>());
  if (!received) fail(ErrorKind::kFailure, "the first process sent no choices of kernels");
  return *received;
}

// Of the run that is continued.
MachineChoices recorded_choices(const fs::path& file, const MachineKey& key) {
  const auto text = file.empty() ? std::nullopt : text_of(file);
  if (!text) return {};
  if (const auto found = choices_from_text(*text, key)) return *found;
  log_info(cat(file.string(),
               " is of another machine or of other settings: kernels are chosen anew, and results "
               "may differ in their last digits"));
  return {};
}

}  // namespace

MachineKey machine_key() {
  return {{"format", kFormat},
          {"program", TILTFLOW_VERSION},
          {"libtorch", TORCH_VERSION},
          {"processor", processor()},
          {"kernels", kernels::kernels().name},
          {"libtorch kernels", at::get_cpu_capability()},
          {"ONEDNN_MAX_CPU_ISA", environment("ONEDNN_MAX_CPU_ISA")},
          {"MKL_ENABLE_INSTRUCTIONS", environment("MKL_ENABLE_INSTRUCTIONS")},
          {"threads", cat(at::get_num_threads())},
          {"device", compute_device().is_cpu() ? "cpu" : compute_device().str()}};
}

std::string to_text(const MachineKey& key, const MachineChoices& choices) {
  Json out{{"key", key}, {"ways", Json::object()}};
  if (choices.speeds.fp32 > 0) {
    out["gflops"] = {{"fp32", choices.speeds.fp32}, {"bf16", choices.speeds.bf16}};
  }
  if (choices.speeds.fp32 > 0) {
    out["precision = auto"] = bf16_pays(choices.speeds) ? "bf16" : "fp32";
  }
  for (std::size_t i = 0; i < way_slots().size(); ++i) {
    if (choices.ways.measured(i)) {
      out["ways"][way_slots()[i].name] = option_name(way_slots()[i], choices.ways.chosen(i));
    }
  }
  return out.dump(1) + "\n";
}

std::optional<MachineChoices> choices_from_text(const std::string& text, const MachineKey& key) {
  try {
    const Json parsed = Json::parse(text);
    if (parsed.at("key").get<MachineKey>() != key) return std::nullopt;
    MachineChoices out;
    if (parsed.contains("gflops")) read_speeds(parsed.at("gflops"), out.speeds);
    read_ways(parsed.at("ways"), out.ways);
    return out;
  } catch (const std::exception&) {
    return std::nullopt;
  }
}

fs::path choices_file(const MachineKey& key) {
  fs::path folder = environment("XDG_CACHE_HOME");
  if (!folder.is_absolute()) folder = fs::path(environment("HOME")) / ".cache";
  if (!folder.is_absolute()) return {};
  std::ostringstream name;
  name << "choices-" << std::hex << hash_of(Json(key).dump()) << ".json";
  return folder / "tiltflow" / name.str();
}

std::optional<MachineChoices> read_choices(const fs::path& file, const MachineKey& key) {
  const auto text = text_of(file);
  return text ? choices_from_text(*text, key) : std::nullopt;
}

const MachineChoices& machine_choices(const ChoiceNeeds& needs) {
  State& s = state();
  const MachineKey key = machine_key();
  if (key != s.key) {
    s.key = key;
    s.asked = {};
    s.choices = recorded_choices(s.followed, key);
  }
  if (!covers(s.asked, needs)) {
    if (world_rank() == 0) s.choices = decided(key, s.choices, needs);
    if (world_size() > 1) s.choices = shared(key, s.choices);
    s.asked = {s.asked.speeds || needs.speeds, s.asked.fp32_ways || needs.fp32_ways,
               s.asked.bf16_ways || needs.bf16_ways};
  }
  if (needs.fp32_ways || needs.bf16_ways) set_ways(s.choices.ways);
  return s.choices;
}

void follow_choices(const fs::path& file) {
  state() = {};
  state().followed = file;
}

void record_choices(const fs::path& file) {
  if (state().key.empty()) return;
  const std::string text = to_text(state().key, state().choices);
  if (text_of(file) != text) write_file_atomic(file, text);
}

}  // namespace tiltflow
