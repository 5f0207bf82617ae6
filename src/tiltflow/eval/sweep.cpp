#include "tiltflow/eval/sweep.h"

#include <algorithm>
#include <cctype>

#include "tiltflow/base/count.h"
#include "tiltflow/base/error.h"
#include "tiltflow/base/file.h"
#include "tiltflow/base/folder_claim.h"
#include "tiltflow/base/problems.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/eval/budget.h"
#include "tiltflow/eval/run_check.h"
#include "tiltflow/eval/sweep_page.h"
#include "tiltflow/report/run_report.h"
#include "tiltflow/tensor/aten.h"
#include "tiltflow/train/start_check.h"

namespace tiltflow {
namespace {

// A folder name from a key and a value: the last part of the key, and nothing a file system minds.
std::string label(const std::string& key, const std::string& value) {
  std::string text =
      key.substr(key.rfind('.') == std::string::npos ? 0 : key.rfind('.') + 1) + "-" + value;
  for (char& c : text) {
    if (!std::isalnum(static_cast<unsigned char>(c)) && c != '.' && c != '-' && c != '_') c = '_';
  }
  return text.substr(0, 60);
}

}  // namespace

SweptKey parse_swept_key(const std::string& text) {
  const std::size_t equals = text.find('=');
  if (equals == std::string::npos || equals == 0) {
    fail(ErrorKind::kUsage, cat("'", text, "': expected KEY=VALUE,VALUE,..."));
  }
  SweptKey out{text.substr(0, equals), {""}};
  int depth = 0;
  bool quoted = false;
  for (const char c : text.substr(equals + 1)) {
    if (c == '"') quoted = !quoted;
    if (!quoted && (c == '[' || c == '{')) ++depth;
    if (!quoted && (c == ']' || c == '}')) --depth;
    if (c == ',' && depth == 0 && !quoted) {
      out.values.emplace_back();
    } else {
      out.values.back() += c;
    }
  }
  for (const std::string& value : out.values) {
    if (value.empty()) fail(ErrorKind::kUsage, cat("'", text, "': an empty value"));
  }
  return out;
}

std::vector<SweptRun> planned_runs(const SweepOptions& o) {
  if (o.keys.empty()) fail(ErrorKind::kUsage, "nothing to vary", "give --vary KEY=VALUE,VALUE,...");
  std::size_t count = o.together ? o.keys[0].values.size() : 1;
  for (const SweptKey& key : o.keys) {
    if (o.together && key.values.size() != count) {
      fail(ErrorKind::kUsage, cat("--together: ", o.keys[0].key, " has ", counted(count, "value"),
                                  ", ", key.key, " has ", key.values.size()));
    }
    if (!o.together) count *= key.values.size();
    if (count > 1000) fail(ErrorKind::kUsage, "more than 1,000 runs");
  }
  std::vector<SweptRun> runs;
  for (std::size_t i = 0; i < count; ++i) {
    SweptRun run;
    std::size_t rest = i;
    for (auto key = o.keys.rbegin(); key != o.keys.rend(); ++key) {  // the last key changes fastest
      const std::string& value = key->values[o.together ? i : rest % key->values.size()];
      rest /= key->values.size();
      run.values.insert(run.values.begin(), {key->key, value});
    }
    for (const auto& [key, value] : run.values) {
      run.name += (run.name.empty() ? "" : "_") + label(key, value);
    }
    for (const SweptRun& other : runs) {
      if (other.name == run.name) {
        run.name += cat("_", i);
        break;
      }
    }
    runs.push_back(std::move(run));
  }
  return runs;
}

namespace {

std::vector<Override> overrides_of(const SweepOptions& o, const SweptRun& run) {
  std::vector<Override> out = o.set;
  for (const auto& [key, value] : run.values) out.emplace_back(key + "=" + value, "--vary");
  return out;
}

// What needs no model: every value is read before the first run begins.
void check_values(const SweepOptions& o, const std::vector<SweptRun>& runs) {
  Problems problems;
  for (const SweptRun& run : runs) {
    problems.check(run.name, [&] { load_config<FinetuneConfig>(o.config, overrides_of(o, run)); });
  }
  problems.raise();
}

}  // namespace

std::vector<SweptRun> check_sweep(const SweepOptions& o) {
  std::vector<SweptRun> runs = planned_runs(o);
  Problems problems;
  for (const SweptRun& run : runs) {
    problems.check(run.name, [&] {
      check_start(set_up(load_config<FinetuneConfig>(o.config, overrides_of(o, run))));
    });
  }
  problems.raise();
  return runs;
}

std::vector<SweptRun> sweep(const SweepOptions& o,
                            const std::function<void(std::size_t, const SweptRun&)>& begins) {
  std::vector<SweptRun> runs = planned_runs(o);
  check_values(o, runs);
  const FolderClaim claim(o.out);
  for (std::size_t i = 0; i < runs.size(); ++i) {
    SweptRun& run = runs[i];
    if (begins) begins(i, run);
    const std::filesystem::path folder = o.out / run.name;
    run.status = status_of(run.name, [&]() -> std::string {
      const PlannedRun planned = plan_run(o.config, overrides_of(o, run), {o.budget, 0}, folder);
      if (o.budget > 0) {
        run.steps = planned.config.train.steps;
        run.evaluations = planned.evaluations;
      }
      const bool trained = train_unless_there(planned, folder);
      const bool finished =
          !trained && (!o.check || std::filesystem::exists(folder / "check.json"));
      if (!finished && o.check) {
        check_run(folder);
      } else if (!finished) {
        write_report(folder);
      }
      return finished ? "there already" : "done";
    });
    write_sweep_page(o, runs);
  }
  return runs;
}

}  // namespace tiltflow
