// Fine-tuning methods trained on exact problems: the tilted law where a method targets it, and
// variants that must miss it.
#include <cmath>
#include <map>

#include "tiltflow/base/strings.h"
#include "tiltflow/models/mixture/mixture_model.h"
#include "tiltflow/models/mlp/mlp.h"
#include "tiltflow/tensor/aten.h"
#include "tiltflow/verify/checks.h"
#include "tiltflow/verify/control_problems.h"
#include "tiltflow/verify/laws.h"
#include "tiltflow/verify/trained.h"

namespace tiltflow {
namespace {

TrainedOptions trained_by(const std::string& name, std::uint64_t seed) {
  TrainedOptions o;
  o.method.name = name;
  o.steps = 25;
  o.iterations = 500;
  o.batch = 256;
  o.hidden = 48;
  o.seed = 3 + seed;
  return o;
}

LawTolerances usual_tolerances(double mean_fraction, double weight = 0.04) {
  LawTolerances out;
  out.mean_fraction = mean_fraction;
  out.covariance_fraction = 0.2;
  out.weight = weight;
  out.cost_fraction = 0.1;
  out.gap = 0.05;
  return out;
}

// The whole law on overlapping modes.
std::vector<VerifyRow> law_of(const std::string& what, const TrainedOptions& options,
                              double mean_fraction, const ExactProblem& p, double weight = 0.04) {
  const TrainedControl control = train_control(p, options);
  return law_rows(p, cat(what, ", ", p.name),
                  sample_law(*control.policy.tuned, control.table, p.dimension(), kLawSamples,
                             options.seed + 200, p.base.get()),
                  usual_tolerances(mean_fraction, weight), false);
}

// One number: the mean of the 1-D Gaussian under r = linear, `shift` times as far from the base's
// as the tilted one.
std::vector<VerifyRow> mean_of(const std::string& what, const TrainedOptions& options, double shift,
                               double tolerance, bool broken) {
  const ExactProblem p = line_gaussian(false);
  const TrainedControl control = train_control(p, options);
  const Estimate found = mean_estimate(
      sample_law(*control.policy.tuned, control.table, 1, kLawSamples, options.seed + 200)
          .x.flatten());
  const double base = mean(p.base->mixture())[0].item<double>();
  const double tilted = mean(p.target.law)[0].item<double>();
  return {{cat(what, ", ", p.name), "mean", base + shift * (tilted - base), found,
           tolerance * std::abs(tilted - base) + 3 * found.se, broken, ""}};
}

// Without a KL nothing remains of the base: every sample goes to the reward's maximum, as close as
// the noise of the last step allows, and as far as the network tells states apart. Methods whose
// reward is at a prediction of the end point leave what the sampler does from there to it
// (`spread_tolerance`).
std::vector<VerifyRow> maximum_of(const std::string& what, const TrainedOptions& options,
                                  double spread_tolerance, bool broken) {
  const ExactProblem p = line_gaussian(true);
  const TrainedControl control = train_control(p, options);
  const at::Tensor x =
      sample_law(*control.policy.tuned, control.table, 1, kLawSamples, options.seed + 200)
          .x.flatten();
  const double centre = 2;
  const double noise = control.table.steps.back().s;
  const Estimate mean = mean_estimate(x);
  const Estimate spread = mean_estimate((x - centre).abs());
  return {{cat(what, ", ", p.name), "mean", centre, mean, 0.1 + 3 * mean.se, broken, ""},
          {cat(what, ", ", p.name), "mean distance to the maximum", noise * std::sqrt(2 / M_PI),
           spread, spread_tolerance + 3 * spread.se, broken, ""}};
}

// Two modes with the same reward and a policy gradient without KL: chance makes it give up one of
// them, unless samples must go on telling where they started.
std::vector<VerifyRow> mode_share(const std::string& what, const TrainedOptions& options,
                                  bool broken) {
  ExactProblem p = make_problem(
      "1-D two modes, even r",
      isotropic_mixture(at::full({2}, 0.5, at::kDouble),
                        at::tensor(std::vector<double>{-2, 2}, at::kDouble).view({2, 1}), 0.4),
      linear_form(at::zeros({1}, at::kDouble)));
  RewardTerm even;
  even.name = "log-density";
  even.args = {{"means", "-2; 2"}, {"deviations", "0.4"}};
  p.reward = std::make_shared<StateReward>(make_reward(even), identity_decoder());
  SamplerConfig sampler;
  sampler.steps = options.steps;
  const TransitionTable table = scaled_memoryless(*p.path, grid_of(sampler, *p.path), 0.3);
  const MlpConfig shape{1, options.hidden, options.depth, 6};
  const RandomStreams streams(options.seed);
  const Policy policy = side_policy(p.base, *make_mlp(shape, init_mlp(shape, streams)), p.path);
  train_policy(
      policy, *p.reward, *p.path, table, [](std::int64_t) { return no_labels(); }, 1, 0, options);
  const Estimate share =
      mean_estimate(sample_law(*policy.tuned, table, 1, kLawSamples, options.seed + 200)
                        .x.flatten()
                        .gt(0)
                        .to(at::kDouble));
  return {{cat(what, ", ", p.name), "share of the right mode", 0.5, share, 0.1 + 3 * share.se,
           broken, ""}};
}

// The policy of value regression is the gradient of a scalar network.
std::vector<VerifyRow> value_regression_rows(const TrainedOptions& options) {
  const ExactProblem p = near_modes();
  SamplerConfig sampler;
  sampler.steps = 50;
  const TransitionTable table = table_of(sampler, *p.path);
  const Policy policy = control_policy(std::make_shared<MixtureModel>(p.base->mixture(), p.path),
                                       p.path, {"potential", 48, 2}, RandomStreams(options.seed));
  train_policy(
      policy, *p.reward, *p.path, table, [](std::int64_t) { return no_labels(); }, 1,
      p.target.log_z, options);
  return law_rows(
      p, cat("value-regression, ", p.name),
      sample_law(*policy.tuned, table, 1, kLawSamples, options.seed + 200, p.base.get()),
      usual_tolerances(0.08), false);
}

std::vector<VerifyRow> control_rows(const std::string& what, const TrainedOptions& options,
                                    const std::function<ControlProblem()>& problem,
                                    double tolerance, bool broken) {
  const TrainedDrift trained = train_drift(problem(), options);
  const Estimate e = control_error(trained, 4000, options.seed + 300);
  return {{cat(what, ", ", trained.problem.name), "E|u-u*|^2 / E|u*|^2", 0, e, tolerance + 3 * e.se,
           broken, ""}};
}

// The tasks in their order; every member adds those of one family.
class MethodChecks {
 public:
  explicit MethodChecks(std::uint64_t seed) : seed_(seed) {}

  std::vector<VerifyTask> all() {
    adjoint_methods();
    path_losses();
    other_adjoints();
    policy_gradients();
    weighted_regression();
    one_step_regression();
    direct_gradients();
    to_the_maximum();
    weak_rewards();
    linear_dynamics();
    double_wells();
    return std::move(tasks_);
  }

 private:
  void add(const std::string& what, std::function<std::vector<VerifyRow>()> rows) {
    tasks_.push_back({what, std::move(rows)});
  }
  void law(const std::string& what, const TrainedOptions& o, double mean_fraction = 0.08) {
    add(what, [=] { return law_of(what, o, mean_fraction, near_modes()); });
  }
  void centre(const std::string& what, const TrainedOptions& o, double shift, double tolerance,
              bool broken = false) {
    add(what, [=] { return mean_of(what, o, shift, tolerance, broken); });
  }
  // L2 error of the control against the exact one, for other dynamics than a flow's.
  void control(const std::string& what, const TrainedOptions& o,
               const std::function<ControlProblem()>& problem, double tolerance,
               bool broken = false) {
    add("control: " + what, [=] { return control_rows(what, o, problem, tolerance, broken); });
  }
  TrainedOptions one_step(const std::string& name, std::int64_t group, const std::string& advantage,
                          double clip) const {
    TrainedOptions o = trained_by(name, seed_);
    o.method.endpoint.rollouts = "base";
    o.method.endpoint.advantage = {group, advantage, clip};
    o.method.endpoint.noisings = 16;
    o.steps = 100;
    return o;
  }
  TrainedOptions in_wells(const std::string& name) const {
    TrainedOptions o = trained_by(name, seed_);
    o.iterations = 600;
    o.batch = 512;
    o.hidden = 64;
    o.learning_rate = 1e-2;
    return o;
  }

  void adjoint_methods() {
    law("adjoint-matching", trained_by("adjoint-matching", seed_));
    TrainedOptions coarse = trained_by("adjoint-matching", seed_);
    coarse.steps = 50;
    coarse.adjoint_stride = 2;
    law("adjoint-matching, a Jacobian for two steps", coarse);
    coarse.adjoint_stride = 5;  // too coarse: weight and mean must show it
    add("adjoint-matching, a Jacobian for five steps", [=] {
      std::vector<VerifyRow> rows =
          law_of("adjoint-matching, a Jacobian for five steps", coarse, 0.08, near_modes());
      rows.resize(2);
      for (VerifyRow& row : rows) row.negative_control = true;
      return rows;
    });
    law("discrete-adjoint", trained_by("discrete-adjoint", seed_));
    law("basic-adjoint-matching", trained_by("basic-adjoint-matching", seed_));
    TrainedOptions linear = trained_by("efficient-adjoint-matching", seed_);
    linear.method.endpoint.noisings = 16;
    linear.steps = 100;
    centre("efficient-adjoint-matching", linear, 1,
           0.1);  // between modes it is slow: its target moves by the local score difference only
  }

  void path_losses() {
    for (const std::string& name : path_loss_methods()) {
      TrainedOptions o = trained_by(name, seed_);
      if (name == "variance") {
        o.iterations = 1500;  // its gradient fades with the weights of the paths that matter
      }
      law(name, o);
    }
    TrainedOptions careful = trained_by("cross-entropy", seed_);
    careful.method.path.trust_region = 0.1;
    law("cross-entropy, trust region", careful);
    for (const char* matrices : {"constant", "exponential", "learned"}) {
      TrainedOptions socm = trained_by("socm", seed_);
      socm.method.soc.matrices = matrices;
      socm.steps = 50;
      add(cat("socm, ", matrices), [=] {  // normalised weights lag behind
        return law_of(cat("socm, ", matrices), socm, 0.1, near_modes(), 0.06);
      });
    }
    law("socm-adjoint", trained_by("socm-adjoint", seed_));
  }

  void other_adjoints() {
    TrainedOptions fine = trained_by("continuous-adjoint", seed_);
    fine.steps = 75;
    fine.iterations = 200;  // biased by one step's noise before
    centre("continuous-adjoint, fine steps", fine, 1, 0.05);
    TrainedOptions replay = trained_by("reciprocal-adjoint-matching", seed_);
    replay.method.reciprocal.noisings = 8;
    replay.steps = 50;
    replay.iterations = 1500;
    add("reciprocal-adjoint-matching",
        [=] { return law_of("reciprocal-adjoint-matching", replay, 0.1, unnormalised_modes()); });
    TrainedOptions value = trained_by("value-regression", seed_);
    value.iterations = 1500;
    add("value-regression", [=] { return value_regression_rows(value); });
  }

  void policy_gradients() {
    TrainedOptions grpo = trained_by("flow-grpo", seed_);
    grpo.method.policy_gradient.advantage = {256, "centred", 0};
    grpo.method.policy_gradient.clip = 0;
    grpo.method.policy_gradient.density = "sum";
    grpo.method.policy_gradient.kl = 1;
    grpo.method.policy_gradient.kl_to_go = true;
    grpo.iterations = 700;
    law("flow-grpo, kl to go", grpo, 0.1);
    TrainedOptions loose = grpo;
    loose.method.policy_gradient.kl = 0.25;
    centre("flow-grpo, kl a quarter", loose, 1, 0.15, true);

    TrainedOptions free = trained_by("flow-grpo", seed_);
    free.method.policy_gradient.advantage = {8, "group", 0};
    free.method.policy_gradient.kl = 0;
    free.batch = 64;
    free.iterations = 400;
    add("flow-grpo, no kl", [=] { return mode_share("flow-grpo, no kl", free, true); });
    TrainedOptions kept = free;
    kept.modes.codes = 2;
    kept.modes.weight = 2;
    add("flow-grpo, no kl, modes preserved",
        [=] { return mode_share("flow-grpo, no kl, modes preserved", kept, false); });
  }

  void weighted_regression() {
    TrainedOptions rwr = trained_by("rwr", seed_);
    rwr.method.endpoint.rollouts = "base";
    rwr.method.endpoint.noisings = 16;
    law("rwr, base rollouts", rwr);
    rwr.method.endpoint.rollouts = "policy";
    rwr.method.endpoint.weights = "path";
    law("rwr, path weights", rwr);
    rwr.method.endpoint.weights = "reward";  // every round tilts again
    centre("rwr, policy rollouts without path weights", rwr, 1, 0.15, true);

    TrainedOptions ram = trained_by("ram", seed_);
    ram.method.endpoint.advantage = {256, "centred", 0};
    ram.method.endpoint.noisings = 16;
    ram.steps = 100;
    centre("ram (exact on a Gaussian with a linear reward)", ram, 1, 0.1);
    ram.method.endpoint.strength = 2;
    centre("ram, twice the strength", ram, 2, 0.1);

    TrainedOptions awm = trained_by("advantage-weighted-matching", seed_);
    awm.method.endpoint.advantage = {256, "centred", 0};
    awm.method.endpoint.noisings = 16;
    awm.method.endpoint.preserve = 1;
    awm.steps = 100;
    centre("advantage-weighted-matching, preserve 1", awm, 1, 0.1);
    awm.method.endpoint.preserve = 0.5;
    centre("advantage-weighted-matching, preserve 0.5", awm, 2, 0.1);
    centre("advantage-weighted-matching, preserve 0.5, taken for the tilted law", awm, 1, 0.1,
           true);
  }

  // One exact step on end points of the base, where its law is known: mean shifts in units of the
  // tilted law's.
  void one_step_regression() {
    TrainedOptions nft =
        one_step("diffusion-nft", 256, "centred", 4);  // v_base + E[A (y - v_base)] / (4 b)
    nft.method.endpoint.strength = 0.25;
    centre("diffusion-nft, one step, b 1/4", nft, 1, 0.1);
    nft.method.endpoint.strength = 0.5;
    centre("diffusion-nft, one step, b 1/2, taken for 1/4", nft, 1, 0.1, true);
    TrainedOptions advantage =
        one_step("advantage-flow", 256, "centred", 0);  // flow matching on (5 + A) p_base / 5
    advantage.method.endpoint.gamma = 5;
    centre("advantage-flow, one step, gamma 5", advantage, 0.2, 0.04);
    advantage.method.endpoint.preserve = 5;
    centre("advantage-flow, one step, gamma 5, preserve 5, taken for 0", advantage, 0.2, 0.04,
           true);
    // The largest of four and of two normal variables: 1.0294 and 0.5642 deviations above the mean,
    // the tilted law 1.5 variances.
    centre("best-of-group, one step, of four", one_step("best-of-group", 4, "group", 0),
           1.0294 / (1.5 * 0.7), 0.1);
    centre("best-of-group, one step, of two, taken for four",
           one_step("best-of-group", 2, "group", 0), 1.0294 / (1.5 * 0.7), 0.1, true);
  }

  void direct_gradients() {
    TrainedOptions draft = trained_by("draft", seed_);
    draft.method.direct.last = 0;
    draft.method.direct.kl = 1;
    law("draft, all steps, kl 1", draft);
    draft.method.direct.kl = 0;
    draft.iterations = 150;
    centre("draft, all steps, no cost", draft, 1, 0.3, true);
    draft.method.direct.last = 1;
    draft.method.direct.kl = 1;
    centre("draft, last step only, kl 1", draft, 1, 0.15, true);
  }

  // The reward's own maximum, where nothing holds them back.
  void to_the_maximum() {
    for (const std::string& name : direct_gradient_methods()) {
      if (name == "discrete-adjoint") continue;  // its cost is part of it
      TrainedOptions loose_end = trained_by(name, seed_);
      const bool predicts = name == "refl" || name == "drtune" || name == "leap-align";
      add(name + ", to the maximum",
          [=] { return maximum_of(name + ", no cost", loose_end, predicts ? 0.3 : 0.05, false); });
    }
    TrainedOptions held = trained_by("draft", seed_);
    held.method.direct.last = 0;
    held.method.direct.kl = 1;
    add("draft with its cost, not to the maximum",
        [=] { return maximum_of("draft, all steps, kl 1", held, 0.3, true); });
  }

  // Six tenths of the reward: every method whose law is checked must be seen to miss it.
  void weak_rewards() {
    for (const std::string& name :
         {std::string("adjoint-matching"), std::string("discrete-adjoint"),
          std::string("basic-adjoint-matching"), std::string("log-variance"),
          std::string("variance"), std::string("trajectory-balance"), std::string("cross-entropy"),
          std::string("socm"), std::string("socm-adjoint"),
          std::string("efficient-adjoint-matching")}) {
      TrainedOptions weak = trained_by(name, seed_);
      weak.reward_scale = 0.6;
      weak.iterations = 250;
      centre(cat(name, ", six tenths of the reward"), weak, 1, 0.2, true);
    }
  }

  void linear_dynamics() {
    for (const std::string& name :
         {std::string("adjoint-matching"), std::string("discrete-adjoint"), std::string("socm"),
          std::string("socm-adjoint"), std::string("cross-entropy")}) {
      control(
          name, trained_by(name, seed_), [] { return ornstein_uhlenbeck(false, 25); },
          name == "cross-entropy" ? 0.1 : 0.02);
      control(
          name, trained_by(name, seed_), [] { return ornstein_uhlenbeck(true, 25); },
          name == "cross-entropy" ? 0.2 : 0.04);
    }
  }

  void double_wells() {
    for (const auto& [name, tolerance] : std::map<std::string, double>{{"adjoint-matching", 0.13},
                                                                       {"socm-adjoint", 0.15},
                                                                       {"log-variance", 0.2},
                                                                       {"socm", 0.25}}) {
      control(name, in_wells(name), [] { return double_well(100); }, tolerance);
    }
    TrainedOptions weak = in_wells("adjoint-matching");
    weak.reward_scale = 0.6;
    control(
        "adjoint-matching, six tenths of the reward", weak, [] { return double_well(100); }, 0.13,
        true);
  }

  std::uint64_t seed_;
  std::vector<VerifyTask> tasks_;
};

}  // namespace

std::vector<VerifyTask> method_checks(std::uint64_t seed) { return MethodChecks(seed).all(); }

}  // namespace tiltflow
