// Several processes on this machine: --procs N.
#pragma once

namespace tiltflow::app {

// Starts this program `count` times with the same arguments (without --procs) and the environment
// of torchrun; waits. The children get the signals that stop (base/signals), and SIGTERM when this
// process dies, however it dies. A child that fails takes the others with it: they have a second to
// notice, five to save. Returns the exit code that says most, after naming the rank and its end;
// else 0.
int launch(int count, int argc, char** argv);

}  // namespace tiltflow::app
