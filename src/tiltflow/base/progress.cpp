#include "tiltflow/base/progress.h"

#include <algorithm>
#include <cstdio>

#include "tiltflow/base/log.h"
#include "tiltflow/base/strings.h"

namespace tiltflow {
namespace {
using Clock = std::chrono::steady_clock;
double seconds_between(Clock::time_point a, Clock::time_point b) {
  return std::chrono::duration<double>(b - a).count();
}
}  // namespace

Progress::Progress(std::string label, std::int64_t total, std::int64_t done)
    : label_(std::move(label)),
      total_(total),
      start_(done),
      done_(done),
      begin_(Clock::now()),
      last_draw_(begin_) {}

Progress::~Progress() {
  if (drawn_ && stderr_is_terminal() && log_level() >= LogLevel::kInfo) std::fputc('\n', stderr);
}

void Progress::update(std::int64_t done, const std::string& note) {
  done_ = done;
  note_ = note;
  const double wait = stderr_is_terminal() ? 0.1 : 10.0;
  const bool last = done_ >= total_;
  if (last || seconds_between(last_draw_, Clock::now()) >= wait) draw(last);
}

void Progress::draw(bool last) {
  if (log_level() < LogLevel::kInfo) return;
  last_draw_ = Clock::now();
  drawn_ = true;
  const double elapsed = seconds_between(begin_, last_draw_);
  const double rate = elapsed > 0 ? static_cast<double>(done_ - start_) / elapsed : 0;
  const std::string eta =
      last
          ? "took " + format_duration(elapsed)
          : "ETA " + (rate > 0 ? format_duration(static_cast<double>(total_ - done_) / rate) : "?");
  const std::string text = cat(label_, " ", done_, "/", total_, "  ", eta, "  ", compact(rate, 3),
                               "/s", note_.empty() ? "" : "  ", note_);
  if (stderr_is_terminal()) {
    const int width = 24;
    const int filled =
        total_ > 0 ? static_cast<int>(width * std::min(done_, total_) / total_) : width;
    std::fprintf(stderr, "\r\x1b[K[%s%s] %s", std::string(filled, '#').c_str(),
                 std::string(width - filled, '.').c_str(), text.c_str());
  } else {
    std::fprintf(stderr, "%s\n", text.c_str());
  }
  std::fflush(stderr);
}

}  // namespace tiltflow
