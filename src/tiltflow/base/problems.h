// Checks that all run before any of their failures is reported.
#pragma once

#include <functional>
#include <vector>

#include "tiltflow/base/error.h"

namespace tiltflow {

class Problems {
 public:
  // Runs `work` and keeps what it throws, except kStopped and a lack of memory, which pass through.
  // Returns whether it threw nothing.
  bool check(const std::function<void()>& work);
  // The same; `where` comes before the message.
  bool check(const std::string& where, const std::function<void()>& work);
  bool none() const { return found_.empty(); }
  // Throws what was kept: one problem as it was, several as one Error of the first one's kind that
  // lists them with their hints.
  void raise() const;

 private:
  void keep(const Error& error);
  std::vector<Error> found_;
};

}  // namespace tiltflow
