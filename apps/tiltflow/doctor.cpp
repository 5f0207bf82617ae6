#include "verbs.h"
namespace tiltflow::app {
void add_doctor(CLI::App&, Action&) {}
}  // namespace tiltflow::app
