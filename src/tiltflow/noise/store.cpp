#include "tiltflow/noise/store.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "tiltflow/base/descriptor.h"
#include "tiltflow/base/error.h"
#include "tiltflow/base/hash.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/tensor/aten.h"

namespace tiltflow {

namespace fs = std::filesystem;

struct AssignStore::Close {
  explicit Close(int f) : file(f) {}
  ~Close() { ::close(file); }
  Close(const Close&) = delete;
  Close& operator=(const Close&) = delete;
  int file;
};

bool has_results(const fs::path& store) {
  std::error_code none;
  const fs::directory_iterator entries(store, none);
  return std::any_of(begin(entries), end(entries), [](const auto& entry) {
    const std::string name = entry.path().filename().string();
    return starts_with(name, "log") && ends_with(name, ".jsonl") && entry.file_size() > 0;
  });
}

AssignStore::AssignStore(fs::path folder, const RunStart& start, std::int64_t size,
                         std::int64_t targets, const std::string& lane)
    : folder_(std::move(folder)),
      rows_path_(folder_ / cat("rows", lane, ".bin")),
      log_path_(folder_ / cat("log", lane, ".jsonl")),
      size_(size),
      targets_(targets) {
  make_directories(folder_);
  const StoredStart stored{cat("the noise in ", folder_.parent_path().string()),
                           folder_ / "request.toml", folder_ / "inputs.json"};
  std::vector<KeyChange> changes;
  if (fs::exists(stored.config) && (!lane.empty() || has_results(folder_))) {
    changes = require_same_start(stored, start);
  }
  store_start(stored, start, changes);
  rows_ = ::open(rows_path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (rows_ < 0) {
    fail(ErrorKind::kFailure, cat("cannot open ", rows_path_.string(), ": ", std::strerror(errno)));
  }
  close_ = std::make_shared<Close>(rows_);
  std::string kept;
  for (const auto& line : read_json_lines(log_path_)) {
    const bool shaped =
        line.is_object() && line.contains("target") && line["target"].is_number_integer();
    const std::int64_t position = shaped ? line["target"].get<std::int64_t>() : -1;
    if (position < 0 || position >= targets_) continue;
    StoredResult result;
    if (line.contains("failed")) {
      result.failed = true;
      result.kind = line.value("failed", "");
      result.message = line.value("message", "");
    } else {
      const at::Tensor bytes = row(position);
      if (!bytes.defined() || cat(crc32c({static_cast<const char*>(bytes.data_ptr()),
                                          bytes.nbytes()})) != line.value("crc32c", "")) {
        continue;
      }
      result.label = line.value("label", std::int64_t{0});
      result.loss = number_from_json(line["loss"]);
      result.start_loss = number_from_json(line["start_loss"]);
    }
    results_[position] = result;
    kept += line.dump() + "\n";
  }
  if (fs::exists(log_path_) && kept != read_file(log_path_)) {
    write_file_atomic(log_path_, kept);  // a cut-off line or a damaged row
  }
  log_ = std::make_unique<LineAppender>(log_path_);
}

bool AssignStore::done(std::int64_t position) const {
  const auto found = results_.find(position);
  return found != results_.end() && !found->second.failed;
}

bool AssignStore::failed(std::int64_t position) const {
  const auto found = results_.find(position);
  return found != results_.end() && found->second.failed;
}

at::Tensor AssignStore::row(std::int64_t position) const {
  at::Tensor out = at::empty({2, size_});
  const std::size_t bytes = out.nbytes();
  std::size_t got = 0;
  while (got < bytes) {
    const ssize_t n = ::pread(rows_, static_cast<char*>(out.data_ptr()) + got, bytes - got,
                              static_cast<off_t>(static_cast<std::size_t>(position) * bytes + got));
    if (n <= 0) return {};
    got += static_cast<std::size_t>(n);
  }
  return out;
}

void AssignStore::add(std::int64_t position, const StoredResult& result, const at::Tensor& base,
                      const at::Tensor& noise) {
  const at::Tensor both = at::stack({base.to(at::kFloat), noise.to(at::kFloat)}).contiguous();
  const std::size_t bytes = both.nbytes();
  std::size_t put = 0;
  while (put < bytes) {
    const ssize_t n =
        ::pwrite(rows_, static_cast<const char*>(both.data_ptr()) + put, bytes - put,
                 static_cast<off_t>(static_cast<std::size_t>(position) * bytes + put));
    if (n <= 0) {
      fail(ErrorKind::kFailure,
           cat("cannot write ", rows_path_.string(), ": ", std::strerror(errno)),
           "what is finished is kept; the same command continues");
    }
    put += static_cast<std::size_t>(n);
  }
  const nlohmann::ordered_json line{
      {"target", position},
      {"label", result.label},
      {"loss", json_number(result.loss)},
      {"start_loss", json_number(result.start_loss)},
      {"crc32c", cat(crc32c({static_cast<const char*>(both.data_ptr()), bytes}))}};
  pending_.push_back(line.dump() + "\n");
  results_[position] = result;
}

void AssignStore::add_failure(std::int64_t position, const std::string& kind,
                              const std::string& message) {
  pending_.push_back(
      nlohmann::ordered_json{{"target", position}, {"failed", kind}, {"message", message}}.dump() +
      "\n");
  results_[position] = {true, kind, message, 0, 0, 0};
}

void AssignStore::sync() {
  if (!sync_descriptor(rows_)) {
    fail(ErrorKind::kFailure,
         cat("cannot write ", rows_path_.string(), ": ", std::strerror(errno)));
  }
  log_->write(join(pending_, ""));
  log_->sync();
  pending_.clear();
}

}  // namespace tiltflow
