// Runs of the program without its start: a process that has libtorch loaded, and has done nothing
// with it, forks one child for each command line. A start of its own costs ten times as much.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace tiltflow::test {

// Runs a command line in the project's folder, with standard output and error in these files;
// answers the status as waitpid does. For tests whose suites begin with "program_". With a limit
// the run is killed, as by SIGKILL, after so many seconds of processor time.
int serve(const std::vector<std::string>& words, const std::filesystem::path& out,
          const std::filesystem::path& err, double limit = 0);

}  // namespace tiltflow::test
