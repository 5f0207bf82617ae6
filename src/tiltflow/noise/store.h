// Assigned noises on disk while they are made: one log line and one packed row a target, so that a
// crash loses at most one chunk and nothing has to be trusted twice.
//   store/request.toml, inputs.json   what was asked for; another request is refused
//   store/rows.bin       per target, at its position: eps then z, fp32 little-endian
//   store/log.jsonl      per attempt: target, loss, checksum of the row; or the failure with its
//   kind and message
// noise/assign_run packs them when all are there.
#pragma once

#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "tiltflow/base/file.h"
#include "tiltflow/config/resume.h"
#include "tiltflow/io/json_lines.h"

namespace tiltflow {

struct StoredResult {
  bool failed = false;
  std::string kind, message;  // of a failure: "bad-file", "non-finite"
  std::int64_t label = 0;
  double loss = 0;
  double start_loss = 0;
};

// Whether anything was assigned there: a start that failed before is forgotten.
bool has_results(const std::filesystem::path& store);

class AssignStore {
 public:
  // Creates the folder or continues in it. `size` numbers per noise, `targets` positions. Throws
  // kConfig when the folder belongs to another request and kBadFile when it cannot be used. Log
  // lines whose row fails its checksum count as not done. `lane`: name of a shard; each has files
  // of its own.
  AssignStore(std::filesystem::path folder, const RunStart& start, std::int64_t size,
              std::int64_t targets, const std::string& lane = "");

  bool done(std::int64_t position) const;    // a row is there
  bool failed(std::int64_t position) const;  // the last attempt failed
  const std::map<std::int64_t, StoredResult>& results() const { return results_; }  // by position
  // Rows first, then the log, each synced. `base` and `noise` [size] fp32.
  void add(std::int64_t position, const StoredResult& result, const at::Tensor& base,
           const at::Tensor& noise);
  void add_failure(std::int64_t position, const std::string& kind, const std::string& message);
  void sync();
  at::Tensor row(std::int64_t position) const;  // [2, size]

 private:
  std::filesystem::path folder_, rows_path_, log_path_;
  std::int64_t size_, targets_;
  int rows_ = -1;
  struct Close;
  std::shared_ptr<Close> close_;
  std::vector<std::string> pending_;
  std::unique_ptr<LineAppender> log_;
  std::map<std::int64_t, StoredResult> results_;
};

}  // namespace tiltflow
