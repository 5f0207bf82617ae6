#include "tiltflow/io/tensorboard.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <map>

#include "tiltflow/base/file.h"
#include "tiltflow/base/hash.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/io/image.h"
#include "tiltflow/tensor/aten.h"

namespace tiltflow {
namespace {

// --- protobuf wire format: key = field << 3 | type (0 varint, 1 fixed64, 2 length-delimited, 5
// fixed32)
std::string varint(std::uint64_t value) {
  std::string out;
  while (value >= 0x80) {
    out += static_cast<char>(value | 0x80);
    value >>= 7;
  }
  return out += static_cast<char>(value);
}
template <class T>
std::string raw(T value) {
  std::string out(sizeof value, '\0');
  std::memcpy(out.data(), &value, sizeof value);
  return out;
}
std::string field_varint(int field, std::uint64_t value) {
  return varint(static_cast<std::uint64_t>(field) << 3) + varint(value);
}
std::string field_double(int field, double value) {
  return varint(static_cast<std::uint64_t>(field) << 3 | 1) + raw(value);
}
std::string field_float(int field, float value) {
  return varint(static_cast<std::uint64_t>(field) << 3 | 5) + raw(value);
}
std::string field_bytes(int field, const std::string& value) {
  return varint(static_cast<std::uint64_t>(field) << 3 | 2) + varint(value.size()) + value;
}

std::uint32_t masked_crc(const std::string& bytes) {
  const std::uint32_t crc = crc32c(bytes);
  return ((crc >> 15) | (crc << 17)) + 0xa282ead8u;
}

double wall_time() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

}  // namespace

std::string event_tag(const std::string& metric) {
  static const std::map<std::string, std::string> kWhole{
      {"reward", "reward/mean"},
      {"true_reward", "reward/true"},
      {"loss", "loss/total"},
      {"learning_rate", "optimizer/learning_rate"},
      {"gradient_norm", "optimizer/gradient_norm"},
      {"seconds", "time/seconds"},
      {"evaluations", "time/evaluations"},
      {"peak_memory_mb", "memory/peak_mb"},
      {"peak_device_memory_mb", "memory/peak_device_mb"},
      {"control_cost", "control/cost"},
      {"log_z", "base/log_z"},
      {"log_z_se", "base/log_z_se"}};
  if (const auto found = kWhole.find(metric); found != kWhole.end()) return found->second;
  for (const char* group : {"eval", "base", "reward", "loss", "mode", "surrogate", "validation"}) {
    const std::string begin = cat(group, "_");
    if (starts_with(metric, begin)) return cat(group, "/", metric.substr(begin.size()));
  }
  constexpr std::string_view kLoss = "_loss";
  if (ends_with(metric, kLoss)) return cat("loss/", metric.substr(0, metric.size() - kLoss.size()));
  return cat("train/", metric);
}

namespace {

constexpr std::string_view kFileStart = "events.out.tfevents.";

// Seconds in the name of the newest event file of a folder; 0: there is none.
long long newest_file(const std::filesystem::path& folder) {
  long long newest = 0;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    const std::string name = entry.path().filename().string();
    if (starts_with(name, kFileStart)) {
      newest = std::max(newest, std::atoll(name.c_str() + kFileStart.size()));
    }
  }
  return newest;
}

}  // namespace

EventWriter::EventWriter(const std::filesystem::path& folder, std::int64_t first_step) {
  char host[256] = "localhost";
  gethostname(host, sizeof host - 1);
  const long long before =
      newest_file(folder);  // files are read in the order of their names, whatever the clock says
  const long long seconds = std::max(static_cast<long long>(wall_time()), before + 1);
  file_ =
      std::make_unique<LineAppender>(folder / cat(kFileStart, seconds, ".", host, ".", getpid()));
  record(field_double(1, wall_time()) + field_bytes(3, "brain.Event:2"));
  if (before > 0) start_session(first_step);
}

// Event.session_log = 7, SessionLog.status = 1, START = 1.
void EventWriter::start_session(std::int64_t first_step) {
  record(field_double(1, wall_time()) + field_varint(2, static_cast<std::uint64_t>(first_step)) +
         field_bytes(7, field_varint(1, 1)));
}

EventWriter::~EventWriter() = default;

void EventWriter::record(const std::string& payload) {
  const std::string length = raw(static_cast<std::uint64_t>(payload.size()));
  file_->write(length + raw(masked_crc(length)) + payload + raw(masked_crc(payload)));
}

void EventWriter::event(std::int64_t step, const std::string& summary_value) {
  record(field_double(1, wall_time()) + field_varint(2, static_cast<std::uint64_t>(step)) +
         field_bytes(5, field_bytes(1, summary_value)));
}

void EventWriter::scalar(const std::string& tag, std::int64_t step, double value) {
  event(step, field_bytes(1, tag) + field_float(2, static_cast<float>(value)));
}

void EventWriter::image(const std::string& tag, std::int64_t step, const at::Tensor& image) {
  const std::string body = field_varint(1, static_cast<std::uint64_t>(image.size(1))) +
                           field_varint(2, static_cast<std::uint64_t>(image.size(2))) +
                           field_varint(3, static_cast<std::uint64_t>(image.size(0))) +
                           field_bytes(4, encode_png(image));
  event(step, field_bytes(1, tag) + field_bytes(4, body));
}

void EventWriter::histogram(const std::string& tag, std::int64_t step, const at::Tensor& values) {
  constexpr int kBins = 30;
  const at::Tensor flat = values.detach().to(at::kDouble).reshape({-1});
  if (flat.numel() == 0) return;
  const double low = flat.min().item<double>();
  const double high = std::max(flat.max().item<double>(), low + 1e-12 * (1 + std::abs(low)));
  const at::Tensor counts = at::histc(flat, kBins, low, high);
  std::string limits, buckets;
  for (int i = 0; i < kBins; ++i) {
    limits += raw(i + 1 == kBins ? high : low + (high - low) * (i + 1) / kBins);
    buckets += raw(counts[i].item<double>());
  }
  // HistogramProto: min 1, max 2, num 3, sum 4, sum_squares 5, bucket_limit 6 (packed), bucket 7
  // (packed)
  const std::string body = field_double(1, low) + field_double(2, high) +
                           field_double(3, static_cast<double>(flat.numel())) +
                           field_double(4, flat.sum().item<double>()) +
                           field_double(5, flat.square().sum().item<double>()) +
                           field_bytes(6, limits) + field_bytes(7, buckets);
  event(step, field_bytes(1, tag) + field_bytes(5, body));
}

}  // namespace tiltflow
