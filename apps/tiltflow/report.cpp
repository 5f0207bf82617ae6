#include "verbs.h"
namespace tiltflow::app {
void add_report(CLI::App&, Action&) {}
}  // namespace tiltflow::app
