#include "tiltflow/io/weight_files.h"

#include <algorithm>

#include "tiltflow/base/error.h"
#include "tiltflow/base/log.h"
#include "tiltflow/base/strings.h"

namespace tiltflow {
namespace {

namespace fs = std::filesystem;

// `variant` with its dot, ".fp16", or "".
std::vector<std::string> spellings(const std::string& stem, const std::string& variant) {
  std::vector<std::string> out;
  for (const char* ending : {"safetensors", "bin"}) {
    out.push_back(cat(stem, variant, ".", ending));
    out.push_back(cat(stem, ".", ending, ".index", variant, ".json"));
    if (!variant.empty()) out.push_back(cat(stem, variant, ".", ending, ".index.json"));
  }
  return out;
}

std::vector<std::string> names_in(const fs::path& folder) {
  std::vector<std::string> out;
  if (!fs::is_directory(folder)) return out;
  for (const auto& entry : fs::directory_iterator(folder)) {
    out.push_back(entry.path().filename().string());
  }
  std::sort(out.begin(), out.end());
  return out;
}

}  // namespace

fs::path find_weights(const fs::path& folder, const std::vector<std::string>& stems) {
  for (const char* variant : {"", ".fp32", ".fp16", ".bf16"}) {
    for (const std::string& stem : stems) {
      for (const std::string& name : spellings(stem, variant)) {
        if (!fs::exists(folder / name)) continue;
        if (*variant) log_info(cat(folder.string(), ": taking the variant ", name));
        return folder / name;
      }
    }
  }
  std::vector<std::string> present = names_in(folder);
  if (present.size() > 12) present.resize(12);
  fail(ErrorKind::kBadFile,
       cat(folder.string(), ": has no ", join(stems, " or "), ".safetensors or .bin"),
       present.empty() ? "the folder is empty or missing"
                       : cat("it has: ", join(present, ", "), "; name the file itself"));
}

}  // namespace tiltflow
