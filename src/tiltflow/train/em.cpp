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

namespace {

void require_training_targets(const OneStepConfig& config, std::size_t targets) {
  const auto training =
      static_cast<std::int64_t>(static_cast<double>(targets) * (1 - config.sft.validation));
  if (training < config.sft.batch) {
    fail(ErrorKind::kConfig,
         cat("sft.batch = ", config.sft.batch, " exceeds the ", training,
             " targets that are not held out"),
         "more targets (targets.count), or a smaller sft.batch");
  }
}

// Rounds of assigning noise and training the generator on it.
class EmLoop {
 public:
  EmLoop(const OneStepConfig& config, const fs::path& out, const RunStart& start)
      : config_(config), out_(out), runtime_(apply(config.compute)), inner_(start) {
    targets_ = list_targets(config.targets);
    require_training_targets(config, targets_.size());
    current_ = open_generator(config.generator, runtime_);
    // Of the halves of a round, whose inputs are those of the loop and each other's results.
    inner_.inputs.clear();
    inner_.resume = true;
  }

  void open_anchor() {
    anchor_ = config_.sft.anchor_file.empty()
                  ? current_
                  : open_generator_file(config_.generator, config_.sft.anchor_file,
                                        config_.generator.section, runtime_);
  }

  EmRound carry_out(std::int64_t r) {
    const fs::path folder = out_ / cat("round-", r < 10 ? "0" : "", r);
    OneStepConfig c = config_;
    c.seed = config_.seed + r;
    assign_noise(c, r, folder / "assign");
    EmRound round;
    round.after_assign = objective(*current_, c, *pairs_);
    const fs::path tuned = folder / "model.safetensors";
    const fs::path note = folder / "m-step.json";
    if (!fs::exists(note)) {
      train_weights(c, folder, round);
      write_file_atomic(
          note, Json{{"after_train", round.after_train}, {"step", round.step}}.dump(1) + "\n");
    } else {
      const Json json = Json::parse(read_file(note));
      round.after_train = json.at("after_train").get<double>();
      round.step = json.at("step").get<double>();
    }
    current_ = open_generator_file(config_.generator, tuned, "", runtime_);
    return round;
  }

  const Generator& current() const { return *current_; }

 private:
  void assign_noise(const OneStepConfig& c, std::int64_t r, const fs::path& folder) {
    const RandomStreams streams(static_cast<std::uint64_t>(c.seed));
    const Assigner assigner(*current_, c.assign, streams, feature_function(c.features));
    AssignRunOptions options;
    options.out = folder;
    options.start = inner_;
    options.round = static_cast<std::uint32_t>(r);
    if (pairs_ && config_.em.warm_start) options.warm = pairs_.get();
    {
      Progress progress(cat("round ", r, ", assign"), static_cast<std::int64_t>(targets_.size()));
      options.progress = [&](std::int64_t done, double loss) {
        progress.update(done, cat("loss ", compact(loss, 3)));
      };
      run_assignment(*current_, assigner, c.assign, targets_, streams, options);
    }
    pairs_ = std::make_unique<AssignedSet>(read_assigned(folder));
  }

  // Trains on the pairs, and halves the step of the weights until the objective falls.
  void train_weights(const OneStepConfig& c, const fs::path& folder, EmRound& round) const {
    Run run(folder / "sft", inner_);
    const SftResult result = sft(current_, anchor_, *pairs_, c, run);
    const auto proposal = open_generator_file(config_.generator, result.file, "", runtime_);
    ParameterSet accepted = current_->parameters();
    round.after_train = round.after_assign;
    round.step = 0;
    double share = 1;
    for (std::int64_t i = 0; i < config_.em.line_search; ++i) {
      const ParameterSet weights = between(*current_, proposal->parameters(), share);
      const double j = objective(*current_->rebind(weights), c, *pairs_);
      if (j < round.after_assign) {
        accepted = weights;
        round.after_train = j;
        round.step = share;
        break;
      }
      share /= 2;
    }
    save_any_generator(folder / "model.safetensors", *current_, accepted);
  }

  const OneStepConfig& config_;
  const fs::path& out_;
  ModelRuntime runtime_;
  RunStart inner_;
  std::vector<Target> targets_;
  std::shared_ptr<const Generator> current_, anchor_;
  std::unique_ptr<AssignedSet> pairs_;  // of the round before
};

// The configuration and inputs that the folder's rounds were begun with.
void store_loop(const fs::path& out, const RunStart& start) {
  const StoredStart stored{cat("the loop in ", out.string()), out / "config.toml",
                           out / "inputs.json"};
  std::vector<KeyChange> changes;
  if (fs::exists(stored.config) && has_results(out / "round-01/assign/store")) {
    changes = require_same_start(stored, start);
  }
  store_start(stored, start, changes);
  record_choices(choices_in(out));
}

}  // namespace

std::vector<EmRound> run_em(const OneStepConfig& config, const fs::path& out,
                            const RunStart& start) {
  EmLoop loop(config, out, start);
  const FolderClaim claim(out);
  store_loop(out, start);
  loop.open_anchor();
  std::vector<EmRound> rounds;
  Json table = Json::array();
  for (std::int64_t r = 1; r <= config.em.rounds; ++r) {
    const EmRound round = loop.carry_out(r);
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
  const Generator& last = loop.current();
  save_any_generator(out / "model.safetensors", last, last.parameters());
  return rounds;
}

}  // namespace tiltflow
