#include "verbs.h"
namespace tiltflow::app {
void add_finetune(CLI::App&, Action&) {}
}  // namespace tiltflow::app
