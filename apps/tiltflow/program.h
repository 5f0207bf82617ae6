// The whole program but for its start: main calls it, and so do the tests, in processes that have
// libtorch loaded.
#pragma once

namespace tiltflow::app {

// Runs one command line; answers the exit code. Once per process: standard output is closed then.
int program(int argc, char** argv);

// Ends the process.
[[noreturn]] void leave(int code);

}  // namespace tiltflow::app
