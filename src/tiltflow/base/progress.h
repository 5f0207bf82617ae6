// Progress of long work on stderr: a bar with rate and ETA on a terminal, one plain line every few
// seconds elsewhere.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

namespace tiltflow {

class Progress {
 public:
  // `done` items of `total` are already finished (resumed work does not count towards the rate).
  Progress(std::string label, std::int64_t total, std::int64_t done = 0);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  // `note` is short text after the bar, e.g. "reward 0.31 +- 0.02".
  void update(std::int64_t done, const std::string& note = "");

 private:
  void draw(bool last);

  std::string label_, note_;
  std::int64_t total_, start_, done_;
  std::chrono::steady_clock::time_point begin_, last_draw_;
  bool drawn_ = false;
};

}  // namespace tiltflow
