#include "verbs.h"
namespace tiltflow::app {
void add_bench(CLI::App&, Action&) {}
}  // namespace tiltflow::app
