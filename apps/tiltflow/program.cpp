// The program: parses the command line, runs one verb, turns errors into one message and an exit
// code.
#include <algorithm>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <filesystem>

#include <unistd.h>

#include "launch.h"
#include "program.h"
#include "standard_streams.h"
#include "tiltflow/base/error.h"
#include "tiltflow/base/log.h"
#include "tiltflow/base/signals.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/tensor/parallel.h"
#include "verbs.h"

namespace tiltflow::app {

namespace {

int report_error(const Error& error) {
  const bool stopped = error.kind() == ErrorKind::kStopped && stop_signal() != 0;
  if (stopped && stop_signal() == SIGPIPE) {
    return stop_exit_code();  // nobody reads: no words, as other tools
  }
  std::fprintf(stderr, "error: %s\n", error.what());
  if (!error.hint().empty()) std::fprintf(stderr, "hint: %s\n", error.hint().c_str());
  return stopped ? stop_exit_code() : exit_code(error.kind());
}

std::vector<std::string> verbs_of(const CLI::App& app) {
  std::vector<std::string> out;
  for (const CLI::App* verb : app.get_subcommands([](const CLI::App*) { return true; })) {
    out.push_back(verb->get_name());
  }
  return out;
}

// Words of the command line that are no options (or values of --procs), from `first` on: the place
// of the next one, or the end.
std::size_t next_word(const std::vector<std::string>& words, std::size_t first) {
  std::size_t i = first;
  while (i < words.size() && starts_with(words[i], "-")) {
    i += words[i] == "--procs" && i + 1 < words.size() ? 2 : 1;
  }
  return i;
}

// CLI11 only says that a subcommand is missing.
void reject_unknown_verb(CLI::App& program, const std::vector<std::string>& words) {
  CLI::App* app = &program;
  for (std::size_t i = next_word(words, 0); i < words.size(); i = next_word(words, i + 1)) {
    const std::vector<std::string> verbs = verbs_of(*app);
    if (verbs.empty()) return;
    if (std::find(verbs.begin(), verbs.end(), words[i]) == verbs.end()) {
      const std::string owner = app == &program ? "tiltflow" : "tiltflow " + app->get_name();
      fail(ErrorKind::kUsage,
           cat("'", words[i], "' is not a verb of ", owner, did_you_mean(words[i], verbs)),
           cat("verbs: ", join(verbs, ", ")));
    }
    app = app->get_subcommand(words[i]);
  }
}

// `help VERB` is `VERB --help`, and `help` alone `--help`.
std::vector<std::string> without_help_verb(std::vector<std::string> words) {
  const std::size_t i = next_word(words, 0);
  if (i == words.size() || words[i] != "help") return words;
  words.erase(words.begin() + static_cast<std::ptrdiff_t>(i));
  words.push_back("--help");
  return words;
}

// CLI11 names an unknown option without a suggestion.
void suggest_option(const CLI::App& program, const std::vector<std::string>& words) {
  std::vector<std::string> known;
  const auto add = [&](const CLI::App& app) {
    for (const CLI::Option* option : app.get_options()) {
      for (const std::string& name : option->get_lnames()) known.push_back("--" + name);
    }
  };
  add(program);
  for (const CLI::App* app = &program; !app->get_subcommands().empty();) {
    add(*(app = app->get_subcommands().front()));
  }
  for (const std::string& word : words) {
    const std::string name = word.substr(0, word.find('='));
    if (!starts_with(name, "--") || name == "--" ||
        std::find(known.begin(), known.end(), name) != known.end()) {
      continue;
    }
    if (const std::string hint = did_you_mean(name, known); !hint.empty()) {
      std::fprintf(stderr, "hint: %s%s\n", name.c_str(), hint.c_str());
    }
  }
}

// Options of the whole program.
struct ProgramOptions {
  bool quiet = false;
  bool debug = false;
  int procs = 1;
};

void describe(CLI::App& program, ProgramOptions& o) {
  program.name("tiltflow");
  program.set_version_flag("--version", std::string("tiltflow ") + TILTFLOW_VERSION);
  program.require_subcommand(1);
  program.fallthrough();
  program.add_flag("-q,--quiet", o.quiet, "only warnings and errors on stderr");
  program.add_flag("--debug", o.debug, "more messages on stderr");
  program
      .add_option("--procs", o.procs,
                  "finetune, pretrain, sample: this many processes on this machine share the work; "
                  "torchrun, Slurm and MPI are recognised by their variables")
      ->check(CLI::Range(1, 1024));
  program.footer(
      "`tiltflow help VERB` explains a verb.\n\nExamples:\n  tiltflow finetune "
      "recipes/mnist-ink.toml --out runs/demo\n  tiltflow verify --suite quick\n  tiltflow sample "
      "--model assets/mnist-sit.safetensors --n 64 --out samples");
}

// In the order of the help.
constexpr void (*kVerbs[])(CLI::App&, Action&) = {
    add_finetune, add_pretrain,   add_sample,       add_sweep,
    add_compare,  add_onestep,    add_noise_report, add_compare_generators,
    add_encode,   add_likelihood, add_eval,         add_verify,
    add_parity,   add_inspect,    add_convert,      add_report,
    add_list,     add_config,     add_doctor,       add_bench,
    add_cite};

int launch_processes(const std::string& verb, int procs, int argc, char** argv) {
  const std::vector<std::string> able{"finetune", "pretrain", "sample"};
  if (std::find(able.begin(), able.end(), verb) == able.end()) {
    fail(ErrorKind::kUsage, cat("--procs: ", verb, " runs in one process"),
         "finetune, pretrain and sample share work");
  }
  return launch(procs, argc, argv);
}

int run(int argc, char** argv) {
  CLI::App program{
      "tiltflow aligns flow and diffusion models with a reward: it samples p*(x) ~ p_base(x) "
      "exp(r(x)) and shows it."};
  ProgramOptions options;
  describe(program, options);
  Action action;
  for (const auto add : kVerbs) add(program, action);
  const std::vector<std::string> words = without_help_verb({argv + 1, argv + argc});
  reject_unknown_verb(program, words);
  std::vector<std::string> reversed(words.rbegin(), words.rend());  // as CLI11 wants them
  try {
    program.parse(reversed);
  } catch (const CLI::ParseError& error) {
    const int code = program.exit(error);
    if (dynamic_cast<const CLI::ExtrasError*>(&error)) suggest_option(program, words);
    return code == 0 ? 0 : 2;
  }
  if (options.quiet) set_log_level(LogLevel::kWarn);
  if (options.debug) set_log_level(LogLevel::kDebug);
  if (options.procs > 1) {
    return launch_processes(program.get_subcommands().front()->get_name(), options.procs, argc,
                            argv);
  }
  keep_freed_memory();
  return action();
}

int guarded(int argc, char** argv) {
  try {
    return run(argc, argv);
  } catch (const Error& error) {
    return report_error(error);
  } catch (const std::bad_alloc&) {
    std::fprintf(stderr, "error: out of memory\nhint: lower the batch size\n");
  } catch (const std::filesystem::filesystem_error& error) {
    std::fprintf(stderr, "error: %s: %s\n", error.path1().c_str(), error.code().message().c_str());
  } catch (const std::exception& error) {
    // A stop may come back from libtorch in its own clothes, and a stack trace follows libtorch's
    // messages.
    if (stop_signal() != 0) {
      return report_error(Error(ErrorKind::kStopped, cat("stopped by ", stop_signal_name())));
    }
    const std::string text = error.what();
    std::fprintf(stderr, "error: %s\n",
                 text.substr(0, text.find("\nException raised from")).c_str());
  }
  return 1;
}

}  // namespace

int program(int argc, char** argv) {
  open_standard_descriptors();
  install_stop_handlers();
  check_standard_output();
  return finish_standard_output(guarded(argc, argv));
}

void leave(int code) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  std::exit(code);
#else
  // Everything is written and closed; taking libtorch's thousands of operators apart one by one
  // would cost as much as a third of the start.
  std::fflush(stderr);
  ::_exit(code);
#endif
}

}  // namespace tiltflow::app
