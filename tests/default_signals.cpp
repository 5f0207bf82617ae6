// Tests send signals; a shell that starts them in the background, or nohup, has some ignored, and
// children inherit that: they would wait for ever.
#include <csignal>

namespace {

[[maybe_unused]] const bool kReset = [] {
  for (const int signal : {SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGPIPE}) std::signal(signal, SIG_DFL);
  return true;
}();

}  // namespace
