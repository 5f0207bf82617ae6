// TensorBoard event files: scalars, pictures and histograms, readable by the official TensorBoard.
// Record = length (u64), masked CRC-32C of the length, payload, masked CRC-32C of the payload; payload = protobuf Event.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>

namespace tiltflow {

class LineAppender;

class EventWriter {
 public:
  explicit EventWriter(const std::filesystem::path& folder);  // new file events.out.tfevents.<time>.<host>.<pid>
  ~EventWriter();
  void scalar(const std::string& tag, std::int64_t step, double value);
  void image(const std::string& tag, std::int64_t step, const at::Tensor& image);     // [C, H, W] in [0, 1]
  void histogram(const std::string& tag, std::int64_t step, const at::Tensor& values);

 private:
  void event(std::int64_t step, const std::string& summary_value);
  void record(const std::string& payload);
  std::unique_ptr<LineAppender> file_;
};

}  // namespace tiltflow
