#include "tiltflow/eval/verify/suite.h"

#include <chrono>
#include <mutex>

#include "tiltflow/eval/verify/checks.h"
#include "tiltflow/tensor/parallel.h"

namespace tiltflow {

VerifyReport run_verify(const VerifyOptions& options) {
  const auto begin = std::chrono::steady_clock::now();
  // Display order; the long trainings start first so that no core waits for them at the end.
  std::vector<std::vector<VerifyTask>> sections{adjoint_checks(options.full), limit_checks(options.full), path_checks(options.full, options.seed),
                                                trained_checks(options.full, options.seed), negative_controls(options.full, options.seed)};
  std::vector<VerifyTask> tasks;
  for (const auto& section : sections) tasks.insert(tasks.end(), section.begin(), section.end());
  const std::size_t trained_begin = sections[0].size() + sections[1].size() + sections[2].size(), trained_end = trained_begin + sections[3].size();
  std::vector<std::size_t> order;
  for (std::size_t i = trained_begin; i < trained_end; ++i) order.push_back(i);
  for (std::size_t i = 0; i < tasks.size(); ++i) if (i < trained_begin || i >= trained_end) order.push_back(i);

  std::vector<std::vector<VerifyRow>> results(tasks.size());
  std::mutex mutex;
  int done = 0;
  parallel_for(static_cast<std::int64_t>(tasks.size()), [&](std::int64_t i) {
    const std::size_t task = order[static_cast<std::size_t>(i)];
    results[task] = tasks[task]();
    const std::lock_guard lock(mutex);
    if (options.progress) options.progress(++done, static_cast<int>(tasks.size()));
  });
  VerifyReport report;
  report.suite = options.full ? "full" : "quick";
  for (const auto& rows : results) report.rows.insert(report.rows.end(), rows.begin(), rows.end());
  report.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  return report;
}

}  // namespace tiltflow
