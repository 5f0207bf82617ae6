// tiltflow list: what can be named in a configuration.
#include <iostream>

#include "tiltflow/base/strings.h"
#include "tiltflow/finetune/methods.h"
#include "tiltflow/models/model_file.h"
#include "tiltflow/reward/reward.h"
#include "tiltflow/sampler/sample.h"
#include "verbs.h"

namespace tiltflow::app {

void add_list(CLI::App& program, Action& action) {
  auto* verb = program.add_subcommand("list", "list rewards, methods, models, samplers or paths");
  auto what = std::make_shared<std::string>();
  verb->add_option("what", *what, "rewards, methods, models, samplers or paths; all when left out")
      ->check(CLI::IsMember({"rewards", "methods", "models", "samplers", "paths"}));
  verb->callback([=, &action] {
    action = [what] {
      const auto section = [&](const std::string& name, const auto& print) {
        if (!what->empty() && *what != name) return;
        if (what->empty()) std::cout << name << ":\n";
        print();
      };
      const auto lines = [](const std::vector<std::string>& names) {
        for (const std::string& name : names) std::cout << "  " << name << "\n";
      };
      section("rewards", [] {
        for (const RewardListing& r : reward_listing()) {
          std::cout << "  " << pad_right(r.name, 18) << r.doc << "\n";
        }
      });
      section("methods", [] {
        for (const MethodListing& m : method_listing()) {
          std::cout << "  " << pad_right(m.name, 29) << "samples " << m.samples << "; needs "
                    << m.needs << "; calls " << m.calls << " (" << m.paper << ")\n";
        }
      });
      section("models", [&] { lines(velocity_model_families()); });
      section("samplers", [&] { lines(sampler_names()); });
      section("paths", [&] { lines(path_names()); });
      return 0;
    };
  });
}

}  // namespace tiltflow::app
