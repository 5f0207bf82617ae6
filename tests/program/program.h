// Running the program as a user does: exit code, output, messages.
#pragma once

#include <sys/wait.h>
#include <wordexp.h>

#include <cstdlib>
#include <string>

#include "tests/program/program_server.h"
#include "tests/support.h"
#include "tests/train/small_model.h"
#include "tiltflow/base/file.h"
#include "tiltflow/base/strings.h"

namespace tiltflow::test {

struct Outcome {
  int code;
  std::string out, err;
};

inline Outcome outcome_of(int status, const TempDir& dir) {
  const int code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  return {code, read_file(dir / "out"), read_file(dir / "err")};
}

// The words that a shell makes of a command line.
inline std::vector<std::string> shell_words(const std::string& line) {
  wordexp_t found{};
  if (::wordexp(line.c_str(), &found, WRDE_NOCMD) != 0) {
    ADD_FAILURE() << "no words: " << line;
    return {};
  }
  const std::vector<std::string> out(found.we_wordv, found.we_wordv + found.we_wordc);
  ::wordfree(&found);
  return out;
}

// A command line of the program, without the cost of its start (program_server.h); killed after
// `limit` seconds of processor time, if that is not 0.
inline Outcome run(const std::string& arguments, double limit = 0) {
  const TempDir dir;
  return outcome_of(serve(shell_words(arguments), dir / "out", dir / "err", limit), dir);
}

// A shell script with $TILTFLOW, the program itself, and the folder $D, from the project's folder;
// output and exit code of the shell. For what a shell does, and for command lines that start the
// program again (--procs, bench --isa, bench startup).
inline Outcome shell(const TempDir& dir, const std::string& script) {
  write_file_atomic(dir / "script.sh",
                    cat("cd ", source_dir().string(), "\nTILTFLOW=", TILTFLOW_PROGRAM,
                        "\nD=", dir.path().string(), "\n", script));
  const int status = std::system(cat("bash ", (dir / "script.sh").string(), " >",
                                     (dir / "out").string(), " 2>", (dir / "err").string())
                                     .c_str());
  return outcome_of(status, dir);
}

// The program itself, from its start; `before` are commands of the shell.
inline Outcome start(const std::string& arguments, const std::string& before = "") {
  const TempDir dir;
  return shell(dir, cat(before, "exec $TILTFLOW ", arguments));
}

inline void expect_message(const Outcome& outcome, int code, const std::string& text) {
  EXPECT_EQ(outcome.code, code) << outcome.err;
  EXPECT_NE(outcome.err.find(text), std::string::npos) << outcome.err;
}

// A SiT of digits with random weights and a thousandth of the shipped one's work.
inline std::string tiny_model() {
  static const TempDir dir;
  const std::filesystem::path file = dir / "tiny.safetensors";
  if (!std::filesystem::exists(file)) save_digit_sit(file);
  return file.string();
}

// Keys that make any fine-tuning recipe short, and those of digits a tenth of a second.
inline const char* const kShort =
    " --set batch=4 --set micro_batch=2 --set sampler.steps=3 --set method.loss_steps=2 --set "
    "evaluation.base_samples=8 --set evaluation.samples=2 --set train.steps=4 --set "
    "train.checkpoint_every=1 --set compute.workers=1 ";
inline std::string tiny() { return cat(" --set model.file=", tiny_model(), kShort); }

}  // namespace tiltflow::test
