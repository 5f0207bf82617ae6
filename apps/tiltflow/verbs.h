// One function per verb: each adds its subcommand to the program. Verbs print data to stdout, words for people to stderr.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <string>
#include <vector>

namespace tiltflow::app {

// What the chosen verb will do; set by its callback, run by main under the common error handling. Returns the exit code.
using Action = std::function<int()>;

void add_pretrain(CLI::App& program, Action& action);
void add_finetune(CLI::App& program, Action& action);
void add_sample(CLI::App& program, Action& action);
void add_eval(CLI::App& program, Action& action);
void add_verify(CLI::App& program, Action& action);
void add_parity(CLI::App& program, Action& action);
void add_inspect(CLI::App& program, Action& action);
void add_convert(CLI::App& program, Action& action);
void add_report(CLI::App& program, Action& action);
void add_list(CLI::App& program, Action& action);
void add_config(CLI::App& program, Action& action);
void add_doctor(CLI::App& program, Action& action);
void add_bench(CLI::App& program, Action& action);
void add_cite(CLI::App& program, Action& action);

// Options shared by verbs that read a configuration.
struct ConfigOptions {
  std::string file;
  std::vector<std::string> set;
  std::string out;
  bool resume = false, dry_run = false;
};
void add_config_options(CLI::App& verb, ConfigOptions& options);
// --weights NAME: which state dict of a PyTorch checkpoint.
CLI::Option* add_weights_option(CLI::App& verb, std::string& weights);
// "KEY=VALUE" items as a map; throws kUsage.
std::map<std::string, std::string> key_values(const std::vector<std::string>& items);

}  // namespace tiltflow::app
