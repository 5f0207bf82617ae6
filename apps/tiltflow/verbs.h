// One function per verb: each adds its subcommand to the program. Verbs print data to stdout, words
// for people to stderr.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <string>
#include <vector>

namespace tiltflow::app {

// What the chosen verb will do; set by its callback, run by main under the common error handling.
// Returns the exit code.
using Action = std::function<int()>;

void add_pretrain(CLI::App& program, Action& action);
void add_finetune(CLI::App& program, Action& action);
void add_sample(CLI::App& program, Action& action);
void add_sweep(CLI::App& program, Action& action);
void add_compare(CLI::App& program, Action& action);
void add_onestep(CLI::App& program, Action& action);  // assign, sft, em, align-noise
void add_noise_report(CLI::App& program, Action& action);
void add_compare_generators(CLI::App& program, Action& action);
void add_encode(CLI::App& program, Action& action);
void add_likelihood(CLI::App& program, Action& action);
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

}  // namespace tiltflow::app
