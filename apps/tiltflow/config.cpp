#include "verbs.h"
namespace tiltflow::app {
void add_config(CLI::App&, Action&) {}
}  // namespace tiltflow::app
