// SIGTERM and SIGINT as a flag that long work polls, so that it can save and stop.
#pragma once

namespace tiltflow {

void install_stop_handlers();  // a second signal of the same kind ends the program at once
int stop_signal();             // 0, SIGTERM or SIGINT

}  // namespace tiltflow
