// tiltflow compare-generators: one-step generators side by side.
#include <iostream>

#include "options.h"
#include "tiltflow/base/error.h"
#include "tiltflow/base/file.h"
#include "tiltflow/base/log.h"
#include "tiltflow/base/progress.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/eval/generator_comparison.h"
#include "verbs.h"

namespace tiltflow::app {
namespace {

// NAME=FILE or NAME=FILE,PAIRS
GeneratorEntry entry_of(const std::string& text) {
  const std::size_t equals = text.find('=');
  if (equals == std::string::npos || equals == 0) {
    fail(ErrorKind::kUsage, cat("--generator '", text, "': expected NAME=FILE or NAME=FILE,PAIRS"));
  }
  const std::size_t comma = text.find(',', equals);
  GeneratorEntry entry{
      text.substr(0, equals),
      text.substr(equals + 1, comma == std::string::npos ? comma : comma - equals - 1),
      {}};
  if (comma != std::string::npos) entry.pairs = text.substr(comma + 1);
  if (entry.file.empty()) {
    fail(ErrorKind::kUsage, cat("--generator '", text, "': the file is missing"));
  }
  return entry;
}

struct CompareGeneratorsOptions {
  std::string file;
  std::string out = "runs/comparison";
  SetOptions changes;
  std::vector<std::string> generators;
  GeneratorComparisonOptions comparison;
  bool json = false;
};

int compare_in_folder(CompareGeneratorsOptions& o) {
  for (const std::string& text : o.generators) o.comparison.entries.push_back(entry_of(text));
  const OneStepConfig config = load_config<OneStepConfig>(o.file, o.changes.overrides());
  std::unique_ptr<Progress> progress;
  o.comparison.progress = [&](std::int64_t done, std::int64_t total) {
    if (!progress) progress = std::make_unique<Progress>("compare", total);
    progress->update(done);
  };
  const GeneratorComparison result = compare_generators(config, o.comparison);
  progress.reset();
  const std::filesystem::path out = o.out;
  make_directories(out);
  write_file_atomic(out / "comparison.json", to_json(result).dump(1) + "\n");
  write_file_atomic(out / "comparison.html", to_html(result));
  if (o.json) {
    std::cout << to_json(result).dump() << std::endl;
  } else {
    std::cout << table_text(result) << std::flush;
  }
  log_info(cat("wrote comparison.json and comparison.html to ", o.out));
  return 0;
}

}  // namespace

void add_compare_generators(CLI::App& program, Action& action) {
  auto* verb = program.add_subcommand(
      "compare-generators",
      "one-step generators side by side: reconstruction, accuracy, Frechet distance, collapse");
  auto o = std::make_shared<CompareGeneratorsOptions>();
  verb->add_option(
          "config", o->file,
          "configuration of `tiltflow assign`: how generators are read, targets, assignment")
      ->required();
  add_set_options(*verb, o->changes);
  verb->add_option("--generator", o->generators,
                   "generator file, the base first; one name for several files: repetitions; "
                   "PAIRS: pairs of its own for the matched error (repeatable)")
      ->type_name("NAME=FILE[,PAIRS]")
      ->required()
      ->allow_extra_args(false);
  verb->add_option("--pairs", o->comparison.pairs,
                   "folder of `tiltflow assign`: matched error on its pairs");
  verb->add_option("--judge", o->comparison.judge,
                   "classifier file: class accuracy and Frechet distance");
  verb->add_option("--n", o->comparison.n, "random samples")
      ->check(CLI::Range(100, 1'000'000))
      ->capture_default_str();
  verb->add_option("--held-out", o->comparison.held_out,
                   "targets of the test split that get noise anew; 0 = none")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  verb->add_option("--out", o->out, "folder for comparison.json and comparison.html")
      ->capture_default_str();
  verb->add_flag("--json", o->json, "one JSON object on stdout");
  verb->footer(
      "Example:\n  tiltflow compare-generators recipes/onestep-mnist.toml --judge "
      "assets/mnist-judge.safetensors --pairs runs/assign \\\n    --generator "
      "base=runs/pretrain-mnist-gan/model.safetensors --generator "
      "matched=runs/sft/model.safetensors");
  verb->callback([=, &action] { action = [o] { return compare_in_folder(*o); }; });
}

}  // namespace tiltflow::app
