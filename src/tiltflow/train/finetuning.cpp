#include "tiltflow/train/finetuning.h"

#include <cmath>
#include <numeric>

#include "tiltflow/base/count.h"
#include "tiltflow/base/error.h"
#include "tiltflow/base/log.h"
#include "tiltflow/base/problems.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/io/safetensors.h"
#include "tiltflow/models/model_file.h"
#include "tiltflow/policy/lora.h"
#include "tiltflow/tensor/aten.h"
#include "tiltflow/tensor/device.h"
#include "tiltflow/tensor/parallel.h"
#include "tiltflow/tensor/process_group.h"
#include "tiltflow/train/memory_plan.h"
#include "tiltflow/train/monitoring.h"
#include "tiltflow/train/reward_terms.h"

namespace tiltflow {

void bind(Fields& f, FinetuneGuidance& c) {
  f.value("mode", c.mode,
          "none; full (tilts the guided law); trajectories (guided rollouts only, as the official "
          "SD code); sampling (guided evaluations only)",
          one_of({"none", "full", "trajectories", "sampling"}));
  bind(f, c.guidance);
}

void bind(Fields& f, EvaluationConfig& c) {
  f.value("every", c.every, "steps between evaluations of the averaged weights; 0 = never",
          at_least_integer(0));
  f.value("samples", c.samples, "samples per evaluation", at_least_integer(2));
  f.value(
      "ode", c.ode,
      "deterministic sampler whose reward on the same noise is logged too, e.g. ode-heun; empty = "
      "none",
      [](const std::string& v) { return v.empty() ? std::string() : one_of(sampler_names())(v); });
  f.value("ode_steps", c.ode_steps, "its steps", at_least_integer(1));
  f.value("ode_guidance", c.ode_guidance, "its own guidance scale; 1 = as in training");
  f.value("base_samples", c.base_samples, "base samples at the start, for E_base r and log Z",
          at_least_integer(2));
}

void bind(Fields& f, CheckConfig& c) {
  f.value("base_samples", c.base_samples, "base samples that are importance-weighted",
          at_least_integer(16));
  f.value("tuned_samples", c.tuned_samples, "samples of the tuned model", at_least_integer(16));
  f.path("judge", c.judge, PathKind::kWeights,
         "classifier for class shares and intra-class variance; empty = none");
  f.value(
      "ode", c.ode, "deterministic sampler that is compared too; empty = none",
      [](const std::string& v) { return v.empty() ? std::string() : one_of(sampler_names())(v); });
  f.value("ode_steps", c.ode_steps, "its steps", at_least_integer(1));
  f.value("standard_errors", c.standard_errors,
          "agreement: within this many combined standard errors", positive());
  f.value("allowance", c.allowance, "plus this share of the shift from p_base to p*", at_least(0));
  f.value(
      "per_condition", c.per_condition,
      "samples of a label on average, of the check and of evaluations; with too many labels for "
      "that, some are chosen",
      at_least_integer(2));
  f.value("conditions", c.conditions, "at most so many labels, when they have to be chosen",
          at_least_integer(1));
}

void bind(Fields& f, FinetuneConfig& c) {
  f.value("seed", c.seed, "root of all randomness", any_seed());
  f.value("batch", c.batch, "trajectories per step", at_least_integer(1));
  f.renamed("item", "micro_batch");
  f.value("micro_batch", c.micro_batch,
          "trajectories per independent piece of work; 0 = as many as fit into memory "
          "(compute.memory_gb)",
          at_least_integer(0));
  f.value("buffer_passes", c.buffer_passes,
          "optimiser steps per collected batch; above 1 the batch is off-policy (see ess)",
          at_least_integer(1));
  f.section("model", c.model);
  f.section("decoder", c.decoder);
  f.list("reward", c.reward);
  f.section("labels", c.labels);
  f.section("sampler", c.sampler);
  f.section("policy", c.policy);
  f.section("guidance", c.guidance);
  c.method.adjoint.grid_steps = c.sampler.steps;
  f.section("method", c.method);
  f.section("surrogate", c.surrogate);
  f.section("modes", c.modes);
  f.section("evaluation", c.evaluation);
  f.section("check", c.check);
  f.section("compute", c.compute);
  f.section("train", c.train);
}

LabelSource FinetuneSetup::labels_at(std::uint32_t step) const {
  const bool training =
      static_cast<std::int64_t>(step) <
      config.train.steps;  // other keys are evaluations: they start at the list's head
  return make_labels(
      config.labels, flow.model->classes(), streams, step,
      training ? static_cast<std::int64_t>(step) / config.buffer_passes * config.batch : 0);
}

namespace {

// Chooses micro-batch and activation checkpointing; the model is loaded again when it must
// recompute.
void follow_memory_plan(FinetuneSetup& s, double trainable) {
  const std::int64_t steps = s.config.sampler.steps;
  TransitionTable table;
  table.steps.resize(static_cast<std::size_t>(steps));
  const auto wanted =
      static_cast<std::int64_t>(std::ceil(make_method(s.config.method)->training_calls(table)));
  double bytes = s.config.compute.memory_gb * 1e9;
  if (!compute_device().is_cpu() && bytes == 0) {
    bytes = 0.5 * device_free_bytes();  // recorded calls (nn/recorded) keep their activations
                                        // beside each other
    if (bytes == 0) {
      fail(ErrorKind::kConfig,
           cat("micro_batch = 0: the memory of device ", compute_device().str(), " is not known"),
           "set compute.memory_gb to what the device has, or micro_batch");
    }
  }
  const MemoryPlan plan = plan_memory(memory_need(*s.flow.model, trainable, steps), s.config.batch,
                                      wanted, thread_policy().workers, bytes);
  log_info(cat("memory plan: ", plan.text()));
  const std::int64_t group = make_method(s.config.method)->needs().group;
  s.config.micro_batch = std::max(group, plan.micro_batch / group * group);  // groups stay together
  if (!plan.checkpointing || s.config.compute.activation_checkpointing) return;
  s.config.compute.activation_checkpointing = true;
  s.flow = {};  // frees the weights first
  s.flow = load_flow_model(s.config.model, apply(s.config.compute));
}

// Declared, or of a program from outside what two samples of noise show. Terms without a graph
// cannot be mended by others that have one.
bool find_reward_gradient(const FinetuneSetup& s) {
  const RewardInfo& info = s.reward->reward().info();
  if (!info.has_gradient || info.gradient_known) return info.has_gradient;
  const bool needed = needs_reward_gradient(s.config);
  for (const ObservedTerm& term :
       observe_terms(*s.reward, prior_sample(s.streams, 0, 0, 2, s.flow.model->sample_shape()),
                     s.labels_at(0)(0, 2))) {
    if (term.gradient == TermGradient::kPresent) continue;
    if (term.gradient == TermGradient::kZero && needed) {
      continue;  // noise may lie where the reward is flat: samples of the base decide
    }
    if (needed) {
      refuse_missing_gradient(
          s.config.method.name, term.name,
          "its score is computed outside autograd (whole numbers, no_grad, another program)");
    }
    log_info(cat("reward ", term.name, " has no gradient; method ", s.config.method.name,
                 " works without"));
    return false;
  }
  return true;
}

}  // namespace

bool needs_reward_gradient(const FinetuneConfig& config) {
  return config.surrogate.every == 0 && make_method(config.method)->needs().reward_gradient;
}

namespace {

// Rollouts of the ODE when the method wants no noise; the sampler of a published preset.
void choose_sampler(FinetuneSetup& s) {
  SamplerConfig& sampler = s.config.sampler;
  const MethodConfig& method = s.config.method;
  sampler.prediction = s.flow.prediction;
  if (sampler.name == "auto" && method.adjoint.preset == "paper") sampler.name = "euler-paper";
  if (sampler.name == "auto" && method.adjoint.preset == "official-sd") sampler.name = "ancestral";
  if (method.noise()) {
    s.table = table_of(sampler, *s.flow.path);
    return;
  }
  // Evaluations and checks follow the ODE too.
  if (sampler.name != "auto" && sampler.name != "ode-euler") {
    fail(ErrorKind::kConfig, cat("method.noise = false rolls out the ODE, not ", sampler.name),
         "leave sampler.name at auto");
  }
  sampler.name = "ode-euler";
  s.table = deterministic_control(grid_of(sampler, *s.flow.path));
}

void require_guidance_fits(const FinetuneSetup& s) {
  const FinetuneGuidance& g = s.config.guidance;
  if (g.mode == "none") return;
  if (s.config.labels.kind == "none") {
    fail(ErrorKind::kConfig, cat("guidance.mode = \"", g.mode, "\" needs labels"),
         "set labels.kind");
  }
  if (!g.guidance.active()) {
    fail(ErrorKind::kConfig,
         cat("guidance.mode = \"", g.mode, "\" with guidance.scale = 1 does nothing"),
         "set guidance.scale, e.g. 4");
  }
  s.for_evaluation(s.flow.model);  // refuses intervals and models that cannot be guided
}

// Reward, sampler, policy and extra reward as the method needs them, each problem for itself.
void check_method(FinetuneSetup& s, Problems& problems) {
  const FinetuneConfig& config = s.config;
  const auto method = make_method(config.method);
  problems.check([&] {
    s.reward_gradient = find_reward_gradient(s);
    RewardInfo seen = s.reward->reward().info();  // what the method works with
    seen.has_gradient = s.reward_gradient || config.surrogate.every > 0;
    require_method_fits(*method, seen, s.table);
  });
  problems.check(
      [&] { require_surroundings_fit(*method, config.buffer_passes, config.policy, s.flow); });
  problems.check([&] {
    if (config.surrogate.every > 0 && !config.method.noise()) {
      fail(ErrorKind::kConfig,
           "surrogate.every with method.noise = false: the learned reward is fitted to samples "
           "with noise",
           "leave one of them out");
    }
  });
  problems.check([&] {
    if (config.modes.codes == 1) {
      fail(ErrorKind::kConfig, "modes.codes = 1 tells nothing apart",
           "use 2 or more, or 0 for none");
    }
    if (config.modes.codes > 0) require_extra_reward_fits(*method, s.table);
  });
}

}  // namespace

FinetuneSetup set_up(const FinetuneConfig& config) {
  FinetuneSetup s;
  s.config = config;
  if (config.method.own) s.config.method.name = config.method.own()->name();
  s.streams = RandomStreams(static_cast<std::uint64_t>(config.seed));
  Problems problems;
  ModelRuntime runtime;
  std::shared_ptr<const Autoencoder> autoencoder;
  std::shared_ptr<const Reward> reward;
  bool made = problems.check([&] { runtime = apply(config.compute); });
  made = problems.check("model", [&] { s.flow = load_flow_model(config.model, runtime); }) && made;
  const bool decodes = problems.check("decoder.file", [&] {
    autoencoder = config.decoder.file.empty() ? nullptr : load_autoencoder(config.decoder);
  });
  const bool rewarded = problems.check([&] { reward = make_weighted_sum(config.reward); });
  problems.check("check.judge", [&] {
    if (!config.check.judge.empty()) load_classifier(config.check.judge);
  });  // what is read at the end is there
  const bool labelled = problems.check([&] { s.config.labels = with_file_read(config.labels); });
  const bool chosen = problems.check(
      [&] { require_groups_fit(*make_method(config.method), config.batch, config.micro_batch); });
  if (!made) problems.raise();
  problems.check([&] {
    const double trainable =
        trainable_bytes(s.flow, config.policy);  // refuses policies that fit nothing
    if (config.micro_batch == 0 && chosen) follow_memory_plan(s, trainable);
  });
  const bool sampled = problems.check([&] { choose_sampler(s); });
  if (labelled) {
    problems.check([&] { s.labels_at(0); });  // refuses labels the model does not have
    problems.check([&] { require_guidance_fits(s); });
  }
  if (rewarded && decodes) {
    problems.check(
        [&] { s.reward = std::make_shared<StateReward>(reward, decoder_of(s.flow, autoencoder)); });
  }
  if (s.reward && sampled && labelled && chosen) check_method(s, problems);
  problems.raise();
  if (!s.table.memoryless) {
    log_warn(cat("sampler ", s.table.name,
                 " is not memoryless: the tuned law will not be the tilted law"));
  }
  return s;
}

Policy FinetuneSetup::for_training(Policy policy) const {
  const Guidance& g = config.guidance.guidance;
  const std::int64_t classes = flow.model->classes();
  if (config.guidance.mode == "trajectories") policy.rollout = guided(policy.tuned, g, classes);
  if (config.guidance.mode == "full") {
    policy.base = guided(policy.base, g, classes);
    policy.tuned = guided(policy.tuned, g, classes);
    policy.backward_cost *= 2;
  }
  return policy;
}

std::shared_ptr<const VelocityField> FinetuneSetup::for_evaluation(
    std::shared_ptr<const VelocityField> field) const {
  return config.guidance.mode == "none"
             ? field
             : guided(std::move(field), config.guidance.guidance, flow.model->classes());
}

std::shared_ptr<const VelocityField> FinetuneSetup::for_check(
    std::shared_ptr<const VelocityField> field) const {
  return config.guidance.mode == "full"
             ? guided(std::move(field), config.guidance.guidance, flow.model->classes())
             : field;
}

double measure_evaluations(const FinetuneSetup& setup) {
  FinetuneSetup probe = setup;
  probe.config.batch = probe.config.micro_batch;
  FinetuneObjective objective(
      probe,
      make_policy(probe.flow, probe.config.policy, static_cast<std::uint64_t>(probe.config.seed)),
      make_method(probe.config.method));
  const std::int64_t period =
      std::lcm(std::lcm(probe.config.buffer_passes, make_method(probe.config.method)->period()),
               std::lcm(std::max<std::int64_t>(1, probe.config.surrogate.every),
                        probe.config.modes.codes > 0 ? probe.config.modes.every : 1));
  double sum = 0;
  for (std::int64_t step = 0; step < period; ++step) {
    const at::AutoGradMode grad(true);
    objective.begin_step(step);
    std::map<std::string, double> metrics = objective.micro_batch(0).metrics.averages();
    objective.end_step(metrics);
    sum += metrics["evaluations"];
  }
  return sum / static_cast<double>(period);
}

namespace {

// The check of a shorter training is no check of the model that follows.
void retire_check(Run& run, std::int64_t steps) {
  const std::filesystem::path model = run.directory() / "model.safetensors";
  if (!std::filesystem::exists(model)) return;
  const auto metadata = read_safetensors(model).metadata;
  const auto before = metadata.find("tiltflow.steps");
  if (before != metadata.end() && before->second != std::to_string(steps)) {
    run.retire("check.json", std::atoll(before->second.c_str()));
  }
}

void announce_setup(const FinetuneSetup& setup, const Policy& policy) {
  log_info(cat("policy ", setup.config.policy.kind, ": ", policy.trainable.numel(),
               " trainable of ", counted(setup.flow.model->parameters().numel(), "parameter"), " (",
               format_bytes(policy.trainable.bytes()), ")"));
  log_info(cat("sampler ", setup.table.name, ", ", counted(setup.table.size(), "step"), ", ",
               setup.flow.path->name(), " path; ", setup.config.compute.precision,
               " products, attention ", setup.config.compute.attention));
}

void announce_base(const FinetuneSetup& setup, const BaseStatistics& base,
                   const std::vector<std::string>& suffixes) {
  log_info(cat("base: reward ", compact(base.reward), " +- ", compact(base.reward_se, 2),
               unscaled_text(base.unscaled, suffixes, "base_"), ", log Z ", compact(base.log_z),
               " +- ", compact(base.log_z_se, 2), " (ESS ", fixed(base.ess, 0), " of ",
               base.samples, base.conditions > 1 ? cat(", ", base.conditions, " labels") : "",
               ")"));
}

// The text beside the progress of a step.
std::string step_note(const std::map<std::string, double>& m, double log_z,
                      const std::vector<std::string>& suffixes) {
  const auto cost = m.find("control_cost");
  return cat("reward ", compact(m.at("reward")), unscaled_text(m, suffixes),
             cost == m.end() ? ""
                             : cat("  cost ", compact(cost->second, 3), "  gap ",
                                   compact(log_z - m.at("reward") + cost->second, 3)),
             "  loss ", compact(m.at("loss"), 3));
}

// What a run has logged and saved before its first step.
void begin_run(const FinetuneSetup& setup, const Policy& policy, const BaseStatistics& base,
               Monitor& monitor, Run& run) {
  run.log(0, metrics_of(base));
  for (const RunWarning& warning : base.warnings) warn(run, 0, warning);
  if (setup.config.evaluation.every > 0) run.log(0, monitor.evaluate(policy.trainable, 0));
  run.save({0,
            {{"weights", policy.trainable},
             {"average", policy.trainable},
             {"optimizer", AdamW(setup.config.train.optimizer, policy.trainable).state()}}},
           setup.config.train.keep_checkpoints);
}

void write_model(const FinetuneSetup& setup, const TrainResult& result, Run& run) {
  std::map<std::string, std::string> metadata = setup.flow.metadata();
  metadata["tiltflow.reward"] = setup.reward->reward().info().name;
  metadata["tiltflow.steps"] = std::to_string(result.steps);
  if (setup.config.guidance.mode != "none") {
    metadata["tiltflow.guidance"] =
        cat(setup.config.guidance.mode, " ", compact(setup.config.guidance.guidance.scale));
  }
  retire_check(run, result.steps);
  const auto tuned = merged_model(setup.flow, setup.config.policy, result.average);
  save_velocity_model(run.directory() / "model.safetensors", *tuned, tuned->parameters(), metadata);
  if (setup.config.policy.kind == "lora") {
    write_adapters(run.directory() / "adapter", result.average, setup.config.policy.rank,
                   setup.config.policy.alpha);
  }
}

}  // namespace

TrainResult finetune(const FinetuneSetup& setup, Run& run) {
  Policy policy =
      make_policy(setup.flow, setup.config.policy, static_cast<std::uint64_t>(setup.config.seed));
  announce_setup(setup, policy);
  const bool fresh = !run.has_checkpoint();
  if (fresh) {
    run.latest();  // forgets what a start that never reached its first checkpoint has logged
  }
  const BaseStatistics base = fresh ? base_statistics(setup, *setup.for_evaluation(policy.base))
                                    : stored_base_statistics(run);
  const std::vector<std::string> suffixes = term_suffixes(setup.config.reward);
  announce_base(setup, base, suffixes);

  const Policy plain = policy;  // without counters, for evaluation
  Monitor monitor(setup, plain, base, run);
  FinetuneObjective objective(setup, std::move(policy), make_method(setup.config.method),
                              base.log_z);
  TrainHooks hooks;
  hooks.label = "finetune";
  hooks.facts = facts_of(setup, base);
  hooks.note = [&](const std::map<std::string, double>& m) {
    return step_note(m, base.log_z, suffixes);
  };
  if (fresh) begin_run(setup, plain, base, monitor, run);
  hooks.evaluate = [&](std::int64_t step, const ParameterSet& average) {
    const std::int64_t every = setup.config.evaluation.every;
    const bool due = every > 0 && (step % every == 0 || step == setup.config.train.steps);
    return due ? monitor.evaluate(average, step) : std::map<std::string, double>{};
  };
  const TrainResult result = train(setup.config.train, objective, run, hooks);
  if (run.writes()) write_model(setup, result, run);
  return result;
}

}  // namespace tiltflow
