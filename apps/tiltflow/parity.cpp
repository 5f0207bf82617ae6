#include "verbs.h"
namespace tiltflow::app {
void add_parity(CLI::App&, Action&) {}
}  // namespace tiltflow::app
