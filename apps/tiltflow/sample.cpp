#include "verbs.h"
namespace tiltflow::app {
void add_sample(CLI::App&, Action&) {}
}  // namespace tiltflow::app
