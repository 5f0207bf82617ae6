// A run folder written by hand: a report is made of whatever stands in it.
#pragma once

#include <string>

#include "tests/support.h"
#include "tiltflow/base/file.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/report/run_report.h"

namespace tiltflow::test {

namespace fs = std::filesystem;

inline bool holds(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

const char* const kFinetune = R"(batch = 64
seed = 3

[[reward]]
name = 'ink'
scale = 18.0

[[reward]]
name = 'class-log-prob'
scale = 0.10000000000000001

[sampler]
name = 'exponential'
steps = 20

    [sampler.inner]
    odd = [ 'a', 'b' ]

[train]
learning_rate = 2.0000000000000002e-05
steps = 40
)";

const char* const kMetrics = R"({"step":0,"base_reward":2.25,"base_reward_se":0.05,"log_z":2.7}
{"step":0,"eval_reward":2.3,"eval_reward_se":0.1,"eval_control_cost":0,"eval_gap":0.4,"eval_gap_se":0.1}
{"step":1,"warning":"control cost explodes","seen":"cost 1e9 <nats>","meaning":"p* is left","change":"lower train.learning_rate"}
{"step":1,"reward":2.2,"loss":0.5,"loss_t0.05":"nan","reward_unscaled_ink":0.12,"odd_number":7,"seconds":2,"evaluations":30}
{"step":2,"reward":2.3,"loss":0.4,"loss_t0.05":0.2,"reward_unscaled_ink":0.13,"odd_number":8,"seconds":2,"evaluations":30}
{"step":2,"eval_reward":2.6,"eval_reward_se":0.1,"eval_control_cost":0.3,"eval_gap":0.2,"eval_gap_se":0.1}
)";

inline std::string estimate(const std::string& name, double value) {
  return cat("\"", name, "\":{\"value\":", value, ",\"se\":0.05}");
}

inline std::string check_json(bool passed) {
  const std::string statistic =
      cat("{\"name\":\"reward mean\",", estimate("base", 2), ",", estimate("predicted", 3), ",",
          estimate("tuned", 2.8), ",", estimate("difference", -0.2),
          ",\"tolerance\":0.25,\"agrees\":", passed ? "true" : "false", "}");
  return cat("{\"passed\":", passed ? "true" : "false",
             ",\"samplers\":[{\"sampler\":\"exponential\",\"ess\":50,\"base_samples\":128,\"tuned_"
             "samples\":128,",
             estimate("log_z", 2.7), ",", estimate("control_cost", 0.3), ",", estimate("gap", 0.1),
             ",", estimate("path_gap", 0.1), ",", estimate("shift_reached", 0.8),
             ",\"statistics\":[", statistic,
             "],\"histogram\":{\"of\":\"ink\",\"edges\":[0,0.5,1],\"base\":[1,1],\"predicted\":[0."
             "5,1.5],\"tuned\":[0.6,1.4]}}]}");
}

inline std::string report_of(const fs::path& run) { return read_file(write_report(run)); }

inline void make_run(const fs::path& run, const std::string& config, const std::string& metrics) {
  fs::create_directories(run / "samples");
  write_file_atomic(run / "config.toml", config);
  write_file_atomic(run / "metrics.jsonl", metrics);
}

}  // namespace tiltflow::test
