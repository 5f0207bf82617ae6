// The one exception type of the project. Library code throws it; only apps/ turns it into an exit
// code.
#pragma once

#include <exception>
#include <string>

namespace tiltflow {

enum class ErrorKind {
  kFailure,    // exit 1: something went wrong at run time
  kUsage,      // exit 2: command line
  kConfig,     // exit 3: configuration file or override
  kBadFile,    // exit 4: an input file is missing, broken or does not fit
  kNonFinite,  // exit 5: NaN or infinity where a number was needed
  kDiverged,   // exit 6: train.stop_when has ended the run; its checkpoints are good
  kStopped,    // exit 75: stopped on a signal or time limit with a good checkpoint
};

// Message: what failed, where, expected against found. Hint: what to do next (may be empty).
class Error : public std::exception {
 public:
  Error(ErrorKind kind, std::string message, std::string hint = "");
  const char* what() const noexcept override { return message_.c_str(); }
  ErrorKind kind() const noexcept { return kind_; }
  const std::string& hint() const noexcept { return hint_; }

 private:
  ErrorKind kind_;
  std::string message_;
  std::string hint_;
};

[[noreturn]] void fail(ErrorKind kind, std::string message, std::string hint = "");
int exit_code(ErrorKind kind) noexcept;

}  // namespace tiltflow
