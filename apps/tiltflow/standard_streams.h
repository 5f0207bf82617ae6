// Descriptors 0 to 2 as programs expect them, and a standard output whose failed writes are
// noticed.
#pragma once

namespace tiltflow::app {

// Opens /dev/null on those of the three that are closed: a file of the run must not get their
// numbers. Before anything else.
void open_standard_descriptors();

// std::cout keeps from here on why a write failed. When nobody reads any more (EPIPE), the program
// is asked to stop.
void check_standard_output();

// Writes what is left. Answers the exit code: `code`; 1 with a message when something could not be
// written; 141 (128 + SIGPIPE), without a word, when nobody reads any more, as for other tools in a
// pipeline.
int finish_standard_output(int code);

}  // namespace tiltflow::app
