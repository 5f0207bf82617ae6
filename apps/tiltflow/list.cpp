#include "verbs.h"
namespace tiltflow::app {
void add_list(CLI::App&, Action&) {}
}  // namespace tiltflow::app
