// Several processes on this machine: --procs N.
#pragma once

namespace tiltflow::app {

// Starts this program `count` times with the same arguments (without --procs) and the environment of torchrun; waits. The
// first process that fails stops the others; signals are passed on. Returns the exit code of the first failure, else 0.
int launch(int count, int argc, char** argv);

}  // namespace tiltflow::app
