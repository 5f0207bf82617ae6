#include <cmath>
#include <nlohmann/json.hpp>

#include "tiltflow/base/error.h"
#include "tiltflow/base/file.h"
#include "tiltflow/base/folder_claim.h"
#include "tiltflow/base/log.h"
#include "tiltflow/base/progress.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/models/model_file.h"
#include "tiltflow/nn/machine_choices.h"
#include "tiltflow/noise/store.h"
#include "tiltflow/tensor/aten.h"
#include "tiltflow/train/onestep.h"

namespace tiltflow {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

double objective(const Generator& generator, const OneStepConfig& c, const AssignedSet& set) {
  return Assigner(generator, c.assign, RandomStreams(static_cast<std::uint64_t>(c.seed)),
                  feature_function(c.features))
      .evaluate(set.noise, set.base, set.targets())
      .mean()
      .item<double>();
}

// a + t (b - a) of what is trained; statistics (whole numbers among them) are b's for a full step
// and a's otherwise.
ParameterSet between(const Generator& a, const ParameterSet& b, double t) {
  ParameterSet out;
  for (const auto& [name, tensor] : a.parameters()) {
    out.add(name, t == 1              ? b.at(name)
                  : a.is_buffer(name) ? tensor
                                      : tensor + t * (b.at(name) - tensor));
  }
  return out;
}

}  // namespace

void bind(Fields& f, EmConfig& c) {
  f.value("rounds", c.rounds, "em: rounds of assigning and fine-tuning", at_least_integer(1));
  f.value("warm_start", c.warm_start,
          "em: noises continue from the round before; false draws them anew, and the objective may "
          "rise");
  f.value("line_search", c.line_search,
          "em: how often the step of the weights is halved before it is given up",
          at_least_integer(1));
}

void bind(Fields& f, OneStepConfig& c) {
  f.value("seed", c.seed, "root of all randomness", any_seed());
  f.path("features", c.features, PathKind::kWeights,
         "classifier file whose last hidden layer assign.feature compares");
  f.section("generator", c.generator);
  f.section("targets", c.targets);
  f.section("assign", c.assign);
  f.section("sft", c.sft);
  f.section("em", c.em);
  f.section("align", c.align);
  f.list("reward", c.reward);
  f.list("held_out", c.held_out);
  f.section("compute", c.compute);
  f.section("train", c.train);
}

FeatureFunction feature_function(const std::string& file) {
  if (file.empty()) return {};
  return [network = load_classifier(file)](const at::Tensor& images) {
    return network->features(images);
  };
}

std::vector<EmRound> run_em(const OneStepConfig& config, const fs::path& out,
                            const RunStart& start) {
  const ModelRuntime runtime = apply(config.compute);
  const std::vector<Target> targets = list_targets(config.targets);
  if (const auto training = static_cast<std::int64_t>(static_cast<double>(targets.size()) *
                                                      (1 - config.sft.validation));
      training < config.sft.batch) {
    fail(ErrorKind::kConfig,
         cat("sft.batch = ", config.sft.batch, " exceeds the ", training,
             " targets that are not held out"),
         "more targets (targets.count), or a smaller sft.batch");
  }
  std::shared_ptr<const Generator> first = open_generator(config.generator, runtime);
  std::shared_ptr<const Generator> current = first;
  const FolderClaim claim(out);
  const StoredStart stored{cat("the loop in ", out.string()), out / "config.toml",
                           out / "inputs.json"};
  std::vector<KeyChange> changes;
  if (fs::exists(stored.config) && has_results(out / "round-01/assign/store")) {
    changes = require_same_start(stored, start);
  }
  store_start(stored, start, changes);
  record_choices(choices_in(out));
  std::shared_ptr<const Generator> anchor = first;
  if (!config.sft.anchor_file.empty()) {
    anchor = open_generator_file(config.generator, config.sft.anchor_file, config.generator.section,
                                 runtime);
  }
  RunStart inner = start;  // of the halves of a round, whose inputs are those of the loop and each
                           // other's results
  inner.inputs.clear();
  inner.resume = true;
  std::vector<EmRound> rounds;
  std::unique_ptr<AssignedSet> before;
  Json table = Json::array();
  for (std::int64_t r = 1; r <= config.em.rounds; ++r) {
    const fs::path folder = out / cat("round-", r < 10 ? "0" : "", r);
    OneStepConfig c = config;
    c.seed = config.seed + r;
    const RandomStreams streams(static_cast<std::uint64_t>(c.seed));
    const Assigner assigner(*current, c.assign, streams, feature_function(c.features));
    AssignRunOptions options;
    options.out = folder / "assign";
    options.start = inner;
    options.round = static_cast<std::uint32_t>(r);
    if (before && config.em.warm_start) options.warm = before.get();
    {
      Progress progress(cat("round ", r, ", assign"), static_cast<std::int64_t>(targets.size()));
      options.progress = [&](std::int64_t done, double loss) {
        progress.update(done, cat("loss ", compact(loss, 3)));
      };
      run_assignment(*current, assigner, c.assign, targets, streams, options);
    }
    before = std::make_unique<AssignedSet>(read_assigned(folder / "assign"));
    EmRound round;
    round.after_assign = objective(*current, c, *before);
    const fs::path tuned = folder / "model.safetensors";
    const fs::path note = folder / "m-step.json";
    if (!fs::exists(note)) {
      Run run(folder / "sft", inner);
      const SftResult result = sft(current, anchor, *before, c, run);
      const auto proposal = open_generator_file(config.generator, result.file, "", runtime);
      ParameterSet accepted = current->parameters();
      round.after_train = round.after_assign;
      round.step = 0;
      double share = 1;
      for (std::int64_t i = 0; i < config.em.line_search; ++i, share /= 2) {
        const ParameterSet weights = between(*current, proposal->parameters(), share);
        const double j = objective(*current->rebind(weights), c, *before);
        if (j >= round.after_assign) continue;
        accepted = weights;
        round.after_train = j;
        round.step = share;
        break;
      }
      save_any_generator(tuned, *current, accepted);
      write_file_atomic(
          note, Json{{"after_train", round.after_train}, {"step", round.step}}.dump(1) + "\n");
    } else {
      const Json json = Json::parse(read_file(note));
      round.after_train = json.at("after_train").get<double>();
      round.step = json.at("step").get<double>();
    }
    current = open_generator_file(config.generator, tuned, "", runtime);
    rounds.push_back(round);
    table.push_back({{"round", r},
                     {"after_assign", round.after_assign},
                     {"after_train", round.after_train},
                     {"step", round.step}});
    write_file_atomic(out / "em.json", table.dump(1) + "\n");
    log_info(cat("round ", r, ": J ", compact(round.after_assign, 5), " after assigning, ",
                 compact(round.after_train, 5), " after training",
                 round.step == 0  ? " (step rejected)"
                 : round.step < 1 ? cat(" (", compact(round.step), " of the step)")
                                  : ""));
  }
  save_any_generator(out / "model.safetensors", *current, current->parameters());
  return rounds;
}

}  // namespace tiltflow
