#include "verbs.h"
namespace tiltflow::app {
void add_eval(CLI::App&, Action&) {}
}  // namespace tiltflow::app
