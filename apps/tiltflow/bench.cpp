// tiltflow bench: speed of this machine and of one Adjoint Matching iteration.
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <iostream>

#include "options.h"
#include "tiltflow/base/error.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/bench/assign_speed.h"
#include "tiltflow/bench/network_speed.h"
#include "tiltflow/bench/startup_speed.h"
#include "tiltflow/models/runtime_config.h"
#include "tiltflow/nn/instruction_sets.h"
#include "tiltflow/tensor/aten.h"
#include "tiltflow/tensor/parallel.h"
#include "tiltflow/train/onestep.h"
#include "verbs.h"

namespace tiltflow::app {

namespace {

struct BenchOptions {
  std::string name = "am";
  bool json = false;
  AmBenchOptions am;
  ComputeConfig compute;
  std::vector<std::string> args;
  SetOptions changes;
  std::string config, isa;
  AssignBenchOptions assign;
};

// With a configuration its generator, targets and search; else random weights and pictures they
// made.
nlohmann::ordered_json assign_speed(const std::string& file, const std::vector<Override>& set,
                                    AssignBenchOptions options, const ComputeConfig& compute) {
  if (file.empty()) {
    const ModelRuntime runtime = apply(compute);
    const auto generator = bench_generator(runtime.precision);
    return bench_assign(*generator, bench_targets(*generator, options.targets), options);
  }
  OneStepConfig config = load_config<OneStepConfig>(file, set);
  config.targets.count = options.targets;
  const ModelRuntime runtime = apply(config.compute);
  const auto generator = open_generator(config.generator, runtime);
  options.assign = config.assign;
  return bench_assign(*generator, read_targets(config.targets, *generator), options,
                      feature_function(config.features));
}

// Starts this program again with the libraries restricted; they have read their variables by now.
void restrict_to(const std::string& instruction_set) {
  if (!restrict_environment(instruction_set)) return;
  std::ifstream file("/proc/self/cmdline");
  std::vector<std::string> words =
      split(std::string(std::istreambuf_iterator<char>(file), {}), '\0');
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.back() = nullptr;  // every word ends in a zero: behind the last is nothing
  ::execv("/proc/self/exe", argv.data());
  fail(ErrorKind::kFailure, cat("cannot start again for --isa: ", std::strerror(errno)));
}

nlohmann::ordered_json bench_gemm() {
  const int workers = thread_policy().workers;
  return {{"bench", "gemm"},
          {"workers", workers},
          {"fp32_gflops_one_core", gemm_peak(1, false)},
          {"fp32_gflops", gemm_peak(workers, false)},
          {"bf16_gflops", gemm_peak(workers, true)},
          {"copy_gb_per_second", copy_rate(workers)}};
}

nlohmann::ordered_json measure(const CLI::App& verb, const BenchOptions& o) {
  if (o.name == "am") return bench_adjoint_matching(o.am);
  if (o.name == "gemm") return bench_gemm();
  if (o.name == "startup") return bench_startup(o.am.repeats);
  if (o.name == "assign") {
    if (!o.config.empty()) {
      refuse_other_options(verb,
                           {"name", "--json", "--isa", "--config", "--set", "--unset", "--targets",
                            "--reference-targets"},
                           "on a configuration: --set changes its keys, e.g. --set "
                           "compute.workers=1");
    }
    return assign_speed(o.config, o.changes.overrides(), o.assign, o.compute);
  }
  const NetworkBenchOptions options{o.am.model,   o.am.batch, o.am.micro_batch,
                                    o.am.repeats, o.am.steps, o.am.runtime};
  return o.name == "pretrain" ? bench_pretraining(options) : bench_network(o.name, options);
}

int bench(const CLI::App& verb, BenchOptions& o) {
  if (!o.isa.empty()) restrict_to(o.isa);
  if (o.name != "assign" && !o.config.empty()) {
    fail(ErrorKind::kUsage, cat("--config belongs to `bench assign`, not to `bench ", o.name, "`"));
  }
  o.am.runtime = apply(o.compute);
  if (!o.args.empty()) o.am.model.args = key_values(o.args);
  o.am.loss_steps = std::min(o.am.loss_steps, o.am.steps);
  const nlohmann::ordered_json out = measure(verb, o);
  if (o.json) {
    std::cout << out.dump() << std::endl;
    return 0;
  }
  for (const auto& [key, value] : out.items()) {
    std::cout << pad_right(key, 34)
              << (value.is_number_float() ? compact(value.get<double>(), 4) : value.dump()) << "\n";
  }
  return 0;
}

// The size of what is measured.
void add_size_options(CLI::App& verb, BenchOptions& o) {
  verb.add_option("--batch", o.am.batch, "samples or trajectories")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  verb.add_option("--micro-batch,--item", o.am.micro_batch, "of them per piece of work")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  verb.add_option("--steps", o.am.steps, "am and sample: sampler steps")
      ->check(CLI::Range(2, 10000))
      ->capture_default_str();
  verb.add_option("--loss-steps", o.am.loss_steps, "am: time steps in the loss")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  verb.add_option("--keep-graphs", o.am.keep_graphs,
                  "am: the loss uses the rollout's graphs instead of calling the network again "
                  "(true or false)")
      ->capture_default_str();
  verb.add_option("--adjoint-stride", o.am.adjoint_stride,
                  "am: steps of the adjoint that one Jacobian of the base serves")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  verb.add_option("--repeats", o.am.repeats, "timed repetitions")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
}

void add_assign_options(CLI::App& verb, BenchOptions& o) {
  auto* config = verb.add_option(
      "--config", o.config,
      "assign: configuration of `tiltflow assign` (default: a generator with random weights)");
  add_set_options(verb, o.changes);
  for (const char* name : {"--set", "--unset"}) verb.get_option(name)->needs(config);
  verb.add_option("--targets", o.assign.targets, "assign: targets")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  verb.add_option("--reference-targets", o.assign.reference_targets,
                  "assign: targets of the one-by-one procedure it is compared with; 0 = none")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
}

}  // namespace

void add_bench(CLI::App& program, Action& action) {
  auto* verb =
      program.add_subcommand("bench",
                             "measure: am (one Adjoint Matching iteration), forward, vjp, "
                             "train-step, pretrain (a step of the trainer), sample, assign (noise "
                             "of one-step generators), gemm (matrix products), startup");
  auto o = std::make_shared<BenchOptions>();
  verb->add_option("name", o->name,
                   "am, forward, vjp, train-step, pretrain, sample, assign, gemm or startup")
      ->check(CLI::IsMember({"am", "forward", "vjp", "train-step", "pretrain", "sample", "assign",
                             "gemm", "startup"}))
      ->capture_default_str();
  verb->add_flag("--json", o->json, "one JSON object on stdout");
  add_size_options(*verb, *o);
  verb->add_option("--policy", o->am.policy, "am: full or lora")
      ->check(CLI::IsMember({"full", "lora"}))
      ->capture_default_str();
  verb->add_option("--model-arg", o->args,
                   "SiT constructor argument, e.g. size=SiT-S/2 (repeatable)")
      ->type_name("KEY=VALUE")
      ->allow_extra_args(false);
  add_assign_options(*verb, *o);
  verb->add_option("--isa", o->isa,
                   "restrict kernels to an instruction set: sse4, avx2, avx512 or avx512_bf16 "
                   "(ours, libtorch's, oneDNN's and MKL's)");
  add_compute_options(*verb, o->compute);
  verb->callback([=, &action] { action = [o, verb] { return bench(*verb, *o); }; });
}

}  // namespace tiltflow::app
