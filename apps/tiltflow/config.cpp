// tiltflow config show|check|diff: a configuration of any verb as the program understands it.
#include <iostream>
#include <map>

#include "options.h"
#include "plan.h"
#include "tiltflow/base/log.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/eval/method_comparison.h"
#include "tiltflow/train/finetuning.h"
#include "tiltflow/train/onestep.h"
#include "tiltflow/train/pretraining_run.h"
#include "verbs.h"

namespace tiltflow::app {
namespace {

using Changes = std::vector<Override>;

template <class Config>
std::vector<ResolvedValue> resolved_as(const std::string& file, const Changes& changes) {
  Fields fields(file, changes);
  Config config;
  bind(fields, config);
  fields.finish();
  return fields.resolved();
}

std::vector<ResolvedValue> resolve(const std::string& file, const Changes& changes) {
  switch (kind_of_recipe(file, changes)) {
    case RecipeKind::kComparison:
      return resolved_as<ComparisonRecipe>(file, changes);
    case RecipeKind::kOneStep:
      return resolved_as<OneStepConfig>(file, changes);
    case RecipeKind::kPretraining:
      return resolved_as<PretrainConfig>(file, changes);
    case RecipeKind::kFinetuning:
      break;
  }
  return resolved_as<FinetuneConfig>(file, changes);
}

void check_recipe(const std::string& file, const Changes& changes) {
  switch (kind_of_recipe(file, changes)) {
    case RecipeKind::kComparison:
      print_plan(check_comparison(file, changes, {}));
      break;
    case RecipeKind::kOneStep:
      print_plan(load_config<OneStepConfig>(file, changes));
      break;
    case RecipeKind::kPretraining:
      print_plan(set_up(load_config<PretrainConfig>(file, changes)), "", {});
      break;
    case RecipeKind::kFinetuning:
      print_plan(set_up(load_config<FinetuneConfig>(file, changes)), "", {});
      break;
  }
}

// Prints the keys that differ; returns how many.
int print_differences(const std::vector<ResolvedValue>& left,
                      const std::vector<ResolvedValue>& right) {
  std::map<std::string, std::pair<std::string, std::string>> values;
  for (const ResolvedValue& v : left) values[v.key].first = v.value;
  for (const ResolvedValue& v : right) values[v.key].second = v.value;
  int differences = 0;
  const auto shown = [](const std::string& value) {
    return value.empty() ? std::string("(absent)") : value;
  };
  for (const auto& [key, pair] : values) {
    if (pair.first == pair.second) continue;
    ++differences;
    std::cout << key << ": " << shown(pair.first) << " -> " << shown(pair.second) << "\n";
  }
  return differences;
}

}  // namespace

void add_config(CLI::App& program, Action& action) {
  struct Options : SetOptions {
    std::string file, other;
    bool docs = false;
  };
  auto* verb = program.add_subcommand("config", "show, check or compare configurations");
  verb->require_subcommand(1);
  auto o = std::make_shared<Options>();

  auto* show = verb->add_subcommand("show", "every key with its value and where it comes from");
  show->add_option("config", o->file, "TOML file (defaults alone when left out)");
  show->add_flag("--docs", o->docs, "with what each key means");
  add_set_options(*show, *o);
  show->callback([=, &action] {
    action = [o] {
      for (const ResolvedValue& v : resolve(o->file, o->overrides())) {
        std::cout << pad_right(cat(v.key, " = ", v.value), 56) << "  # " << v.source
                  << (o->docs ? "; " + v.doc : "") << "\n";
      }
      return 0;
    };
  });

  auto* check =
      verb->add_subcommand("check",
                           "report every problem at once: reads all files that are named, and "
                           "tries model, reward, decoder and judge on two samples");
  check
      ->add_option("config", o->file,
                   "TOML file: of finetune, pretrain, compare or the one-step verbs")
      ->required();
  add_set_options(*check, *o);
  check->callback([=, &action] {
    action = [o] {
      check_recipe(o->file, o->overrides());
      log_info(o->file + ": ok");
      return 0;
    };
  });

  auto* diff =
      verb->add_subcommand("diff", "keys in which two configurations differ (exit 1 if any)");
  diff->add_option("config", o->file, "TOML file")->required();
  diff->add_option("other", o->other,
                   "TOML file; when left out, the first one with --set and --unset");
  add_set_options(*diff, *o);  // of the second
  diff->callback([=, &action] {
    action = [o] {
      const std::string& other = o->other.empty() ? o->file : o->other;
      return print_differences(resolve(o->file, {}), resolve(other, o->overrides())) ? 1 : 0;
    };
  });
}

}  // namespace tiltflow::app
