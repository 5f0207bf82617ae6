#include "verbs.h"
namespace tiltflow::app {
void add_inspect(CLI::App&, Action&) {}
}  // namespace tiltflow::app
