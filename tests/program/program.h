// Running the program as a user does: exit code, output, messages.
#pragma once

#include <sys/wait.h>

#include <cstdlib>
#include <string>

#include "tests/support.h"
#include "tiltflow/base/file.h"
#include "tiltflow/base/strings.h"

namespace tiltflow::test {

struct Outcome {
  int code;
  std::string out, err;
};

inline Outcome run(const std::string& arguments, const std::string& before = "") {
  const TempDir dir;
  const std::string command = cat(before, "cd ", source_dir().string(), " && ", TILTFLOW_PROGRAM, " ", arguments, " >", (dir / "out").string(), " 2>", (dir / "err").string());
  const int status = std::system(command.c_str());
  return {WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status), read_file(dir / "out"), read_file(dir / "err")};
}

inline void expect_message(const Outcome& outcome, int code, const std::string& text) {
  EXPECT_EQ(outcome.code, code) << outcome.err;
  EXPECT_NE(outcome.err.find(text), std::string::npos) << outcome.err;
}

// Keys that make any fine-tuning recipe take a second.
inline const char* const kTiny = " --set batch=4 --set item=2 --set sampler.steps=3 --set method.loss_steps=2 --set evaluation.base_samples=8 --set evaluation.samples=2 --set train.steps=4 --set train.checkpoint_every=1 --set compute.workers=1 ";

}  // namespace tiltflow::test
