// tiltflow config show|check|diff: a configuration, for fine-tuning or pre-training, as the program understands it.
#include <iostream>
#include <map>

#include "tiltflow/base/log.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/eval/method_comparison.h"
#include "tiltflow/train/finetuning.h"
#include "tiltflow/train/onestep.h"
#include "tiltflow/train/pretraining_run.h"
#include "verbs.h"

namespace tiltflow::app {
namespace {

// A pre-training configuration says its kind, one for one-step generators its generator, a comparison its config; any other is for fine-tuning.
bool is_pretraining(const std::string& file, const std::vector<std::string>& set) { return Fields(file, set).has("kind"); }
bool is_onestep(const std::string& file, const std::vector<std::string>& set) { return Fields(file, set).has("generator"); }
bool is_comparison(const std::string& file, const std::vector<std::string>& set) { return Fields(file, set).has("config"); }

template <class Config>
std::vector<ResolvedValue> resolved_as(const std::string& file, const std::vector<std::string>& set) {
  Fields fields(file, set);
  Config config;
  bind(fields, config);
  fields.finish();
  return fields.resolved();
}

std::vector<ResolvedValue> resolve(const std::string& file, const std::vector<std::string>& set) {
  if (is_comparison(file, set)) return resolved_as<ComparisonRecipe>(file, set);
  if (is_onestep(file, set)) return resolved_as<OneStepConfig>(file, set);
  return is_pretraining(file, set) ? resolved_as<PretrainConfig>(file, set) : resolved_as<FinetuneConfig>(file, set);
}

}  // namespace

void add_config(CLI::App& program, Action& action) {
  struct Options {
    std::string file, other;
    std::vector<std::string> set;
    bool docs = false;
  };
  auto* verb = program.add_subcommand("config", "show, check or compare configurations");
  verb->require_subcommand(1);
  auto o = std::make_shared<Options>();
  const auto with_set = [&](CLI::App* sub) { sub->add_option("--set", o->set, "override a key")->type_name("KEY=VALUE")->allow_extra_args(false); };

  auto* show = verb->add_subcommand("show", "every key with its value and where it comes from");
  show->add_option("config", o->file, "TOML file (defaults alone when left out)");
  show->add_flag("--docs", o->docs, "with what each key means");
  with_set(show);
  show->callback([=, &action] {
    action = [o] {
      for (const ResolvedValue& v : resolve(o->file, o->set)) {
        std::cout << pad_right(cat(v.key, " = ", v.value), 56) << "  # " << v.source << (o->docs ? "; " + v.doc : "") << "\n";
      }
      return 0;
    };
  });

  auto* check = verb->add_subcommand("check", "report every problem at once; also loads the files the configuration names");
  check->add_option("config", o->file, "TOML file")->required();
  with_set(check);
  check->callback([=, &action] {
    action = [o] {
      if (is_comparison(o->file, o->set)) check_comparison(o->file, o->set, {});
      else if (is_onestep(o->file, o->set)) open_generator(load_config<OneStepConfig>(o->file, o->set).generator);
      else if (is_pretraining(o->file, o->set)) set_up(load_config<PretrainConfig>(o->file, o->set));
      else set_up(load_config<FinetuneConfig>(o->file, o->set));
      log_info(o->file + ": fine");
      return 0;
    };
  });

  auto* diff = verb->add_subcommand("diff", "keys in which two configurations differ (exit 1 if any)");
  diff->add_option("config", o->file, "TOML file")->required();
  diff->add_option("other", o->other, "TOML file")->required();
  diff->callback([=, &action] {
    action = [o] {
      std::map<std::string, std::pair<std::string, std::string>> values;
      for (const ResolvedValue& v : resolve(o->file, {})) values[v.key].first = v.value;
      for (const ResolvedValue& v : resolve(o->other, {})) values[v.key].second = v.value;
      int differences = 0;
      for (const auto& [key, pair] : values) {
        if (pair.first == pair.second) continue;
        ++differences;
        std::cout << key << ": " << (pair.first.empty() ? "(absent)" : pair.first) << " -> " << (pair.second.empty() ? "(absent)" : pair.second) << "\n";
      }
      return differences ? 1 : 0;
    };
  });
}

}  // namespace tiltflow::app
