// SHA-256 in pieces: what `sha256sum` prints, and what model hubs publish beside their files.
#pragma once

#include <memory>
#include <string>
#include <string_view>

namespace tiltflow {

class Sha256 {
 public:
  Sha256();
  ~Sha256();
  Sha256(const Sha256&) = delete;
  Sha256& operator=(const Sha256&) = delete;
  void add(std::string_view bytes);
  std::string hex();  // 64 digits; ends the sum

 private:
  struct State;
  std::unique_ptr<State> state_;
};

std::string sha256(std::string_view bytes);

}  // namespace tiltflow
