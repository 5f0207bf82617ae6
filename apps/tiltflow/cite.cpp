#include "verbs.h"
namespace tiltflow::app {
void add_cite(CLI::App&, Action&) {}
}  // namespace tiltflow::app
