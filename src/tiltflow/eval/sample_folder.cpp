#include "tiltflow/eval/sample_folder.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "tiltflow/base/error.h"
#include "tiltflow/base/file.h"
#include "tiltflow/base/strings.h"

namespace tiltflow {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

const std::string kInputs = "inputs";

bool is_picture_name(const std::string& name) {
  constexpr std::size_t kDigits = 6;
  const std::string stem = name.substr(0, name.size() - std::min<std::size_t>(name.size(), 4));
  return ends_with(name, ".png") && stem.size() >= kDigits &&
         std::all_of(stem.begin(), stem.end(), [](char c) { return c >= '0' && c <= '9'; });
}

// What `sample` leaves in a folder beside request.json.
std::vector<fs::path> results_in(const fs::path& folder) {
  std::vector<fs::path> out;
  for (const auto& entry : fs::directory_iterator(folder)) {
    const std::string name = entry.path().filename().string();
    const bool parts = name == "parts" && entry.is_directory() && !fs::is_empty(entry.path());
    if (parts || is_picture_name(name) || name == "grid.png" || name == "samples.safetensors" ||
        name == "samples.npz") {
      out.push_back(entry.path());
    }
  }
  return out;
}

Json request_json(const GenerateOptions& o) {
  Json out(o.request);
  out["n"] = std::to_string(o.n);
  out["first"] = std::to_string(o.first);
  out["part"] = std::to_string(o.part);
  out[kInputs] = Json::parse(inputs_text(o.inputs));
  return out;
}

Json read_request(const fs::path& file) {
  const Json out = Json::parse(read_file(file), nullptr, /*allow_exceptions=*/false);
  if (!out.is_object()) {
    fail(ErrorKind::kBadFile, cat(file.string(), ": no request of `tiltflow sample`"),
         "choose another folder with --out");
  }
  return out;
}

std::string text_of(const Json& request, const std::string& key) {
  if (!request.contains(key)) return "nothing";
  return request[key].is_string() ? request[key].get<std::string>() : request[key].dump();
}

// What differs, in words. Values that name a file are compared by the file's content.
std::vector<std::string> differences(const Json& before, const Json& now, const fs::path& file) {
  const auto inputs = [&](const Json& request) {
    return request.contains(kInputs) ? parse_inputs(request[kInputs].dump(), file.string())
                                     : Inputs{};
  };
  const Inputs old = inputs(before);
  const Inputs fresh = inputs(now);
  std::vector<std::string> out = changed_inputs(old, fresh);
  Json keys = before;
  keys.update(now);
  for (const auto& [key, value] : keys.items()) {
    if (key == kInputs || (old.count(key) && fresh.count(key))) continue;
    if (text_of(before, key) != text_of(now, key)) {
      out.push_back(cat(key, " was ", text_of(before, key), ", now ", text_of(now, key)));
    }
  }
  return out;
}

[[noreturn]] void refuse_other(const fs::path& folder, const std::vector<std::string>& changes) {
  fail(ErrorKind::kConfig,
       cat(folder.string(), " holds samples of another request: ", join(changes, "; ")),
       "choose another --out, or --overwrite to remove them");
}

void require_ours(const fs::path& folder) {
  const std::vector<fs::path> found = results_in(folder);
  if (found.empty()) return;
  fail(ErrorKind::kConfig,
       cat(folder.string(), " holds ", found.front().filename().string(),
           " and no request.json: these samples are not of `tiltflow sample`"),
       "choose another --out");
}

}  // namespace

SampleFolder open_sample_folder(const GenerateOptions& o) {
  const bool shared = o.shards > 1;
  SampleFolder out{FolderClaim(o.out, shared ? cat("shard-", o.shard, "-of-", o.shards) : "")};
  const ProcessLock alone(o.out / ".lock-request");  // shards look one after another
  const fs::path file = o.out / "request.json";
  const Json wanted = request_json(o);
  if (!fs::exists(file)) {
    require_ours(o.out);
  } else {
    const Json stored = read_request(file);
    const std::vector<fs::path> found = results_in(o.out);
    const bool begun = shared || !found.empty();
    if (begun && o.overwrite) {
      for (const fs::path& each : found) fs::remove_all(each);
    } else if (begun && (o.resume || shared)) {
      if (const auto changes = differences(stored, wanted, file); !changes.empty()) {
        refuse_other(o.out, changes);
      }
      out.finished = !found.empty() && !fs::exists(o.out / "parts");
    } else if (begun) {
      fail(ErrorKind::kConfig,
           cat(o.out.string(), " holds samples already: ", text_of(stored, "n"), " of ",
               text_of(stored, "model"), ", seed ", text_of(stored, "seed")),
           "choose another --out, --resume to continue them, or --overwrite to remove them");
    }
    if (out.finished) return out;
  }
  make_directories(o.out / "parts");
  write_file_atomic(file, wanted.dump(1, ' ', false, Json::error_handler_t::replace) + "\n");
  return out;
}

}  // namespace tiltflow
