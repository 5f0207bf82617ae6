#include "tiltflow/verify/suite.h"

#include <chrono>
#include <mutex>

#include "tiltflow/base/error.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/tensor/parallel.h"
#include "tiltflow/verify/checks.h"

namespace tiltflow {

VerifyReport run_verify(const VerifyOptions& options) {
  const auto begin = std::chrono::steady_clock::now();
  // Display order; the long trainings start first so that no core waits for them at the end.
  std::vector<std::vector<VerifyTask>> sections{identity_checks(options.seed),
                                                method_checks(options.seed)};
  if (!options.methods) {
    sections = {adjoint_checks(options.full),
                limit_checks(options.full),
                path_checks(options.full, options.seed),
                trained_checks(options.full, options.seed),
                policy_checks(options.full, options.seed),
                negative_controls(options.full, options.seed)};
  }
  constexpr std::size_t kFirstTrained = 3;
  constexpr std::size_t kLastTrained = 4;
  std::vector<VerifyTask> tasks;
  std::vector<std::size_t> order, others;
  std::vector<std::string> names;
  for (std::size_t s = 0; s < sections.size(); ++s) {
    for (const VerifyTask& task : sections[s]) {
      names.push_back(task.name);
      if (task.name.find(options.only) == std::string::npos) continue;
      (s >= kFirstTrained && s <= kLastTrained ? order : others).push_back(tasks.size());
      tasks.push_back(task);
    }
  }
  order.insert(order.end(), others.begin(), others.end());
  if (tasks.empty()) {
    fail(ErrorKind::kUsage,
         cat("no task of the suite has '", options.only, "' in its name",
             did_you_mean(options.only, names)),
         cat("tasks: ", join(names, "; ")));
  }

  std::vector<std::vector<VerifyRow>> results(tasks.size());
  std::mutex mutex;
  int done = 0;
  if (options.finished) options.finished(0, static_cast<int>(tasks.size()), "", {});
  parallel_for(static_cast<std::int64_t>(tasks.size()), [&](std::int64_t i) {
    const std::size_t task = order[static_cast<std::size_t>(i)];
    results[task] = tasks[task].run();
    const std::lock_guard lock(mutex);
    ++done;
    if (options.finished) {
      options.finished(done, static_cast<int>(tasks.size()), tasks[task].name, results[task]);
    }
  });
  VerifyReport report;
  report.suite = options.methods ? "methods" : options.full ? "full" : "quick";
  for (const auto& rows : results) report.rows.insert(report.rows.end(), rows.begin(), rows.end());
  report.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  return report;
}

}  // namespace tiltflow
