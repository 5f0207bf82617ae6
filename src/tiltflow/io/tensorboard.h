// TensorBoard event files: scalars, pictures and histograms, readable by the official TensorBoard.
// Record = length (u64), masked CRC-32C of the length, payload, masked CRC-32C of the payload;
// payload = protobuf Event.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>

namespace tiltflow {

class LineAppender;

// The group/name under which TensorBoard shows a metric of metrics.jsonl: reward -> reward/mean,
// eval_gap -> eval/gap, matched_loss -> loss/matched.
std::string event_tag(const std::string& metric);

class EventWriter {
 public:
  // A new file events.out.tfevents.<time>.<host>.<pid>, whose name sorts behind those in the
  // folder. When there are any, it begins with a session start at `first_step`: TensorBoard then
  // forgets what they say of that step and later ones, which a continued run repeats.
  EventWriter(const std::filesystem::path& folder, std::int64_t first_step);
  ~EventWriter();
  void scalar(const std::string& tag, std::int64_t step, double value);
  void image(const std::string& tag, std::int64_t step,
             const at::Tensor& image);  // [C, H, W] in [0, 1]
  void histogram(const std::string& tag, std::int64_t step, const at::Tensor& values);

 private:
  void start_session(std::int64_t first_step);
  void event(std::int64_t step, const std::string& summary_value);
  void record(const std::string& payload);
  std::unique_ptr<LineAppender> file_;
};

}  // namespace tiltflow
