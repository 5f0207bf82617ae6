#include "tiltflow/finetune/methods.h"

#include <algorithm>

#include "tiltflow/base/error.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/finetune/noising.h"

namespace tiltflow {
namespace {

bool one_among(const std::string& name, const std::vector<std::string>& names) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

std::vector<std::string> method_names() {
  std::vector<std::string> out;
  for (const MethodListing& m : method_listing()) out.push_back(m.name);
  return out;
}

// See MethodListing.
struct MethodRow {
  const char *name, *samples, *needs, *paper, *calls;
};

constexpr MethodRow kMethods[] = {
    {"adjoint-matching", "the tilted law (preset exact)",
     "reward gradient, products with the base's Jacobian, noise",
     "Domingo-Enrich et al. 2024, arXiv 2409.08861", "3 K - 1 | n"},
    {"discrete-adjoint", "the tilted law", "reward gradient, noise, graph of all steps",
     "Domingo-Enrich et al. 2024; Nusken & Richter 2021", "0 | 2 K"},
    {"basic-adjoint-matching",
     "the tilted law; the discrete adjoint's gradient, one step's graph at a time",
     "reward gradient, products with the base's and the model's Jacobian, noise",
     "Domingo-Enrich et al. 2024, arXiv 2409.08861", "4 K - 3 | K"},
    {"continuous-adjoint", "the tilted law as the steps get finer",
     "reward gradient, products with the base's and the model's Jacobian, noise",
     "Domingo-Enrich et al. 2024, arXiv 2409.08861", "4 K | K"},
    {"efficient-adjoint-matching", "the tilted law, as far as the base's score near t = 1 is right",
     "reward gradient", "EAM, arXiv 2605.11480", "K + 1 | M"},
    {"log-variance", "the tilted law", "noise", "Nusken & Richter 2021, arXiv 2005.05409", "K | K"},
    {"reciprocal-adjoint-matching",
     "exp(r) on a standard normal base: unnormalised densities, with a replay buffer",
     "reward gradient, a standard normal base",
     "Havens et al. 2025, arXiv 2504.11713; AMDP, arXiv 2606.22630", "K every refresh steps | M"},
    {"socm", "the tilted law; weights degenerate in high dimension",
     "reward gradient, products with the base's Jacobian, noise",
     "Domingo-Enrich et al. 2023, arXiv 2312.02027", "2 K - 1 | K"},
    {"socm-adjoint", "the tilted law; weights degenerate in high dimension",
     "reward gradient, products with the base's Jacobian, noise",
     "Domingo-Enrich et al. 2023, arXiv 2312.02027", "2 K - 1 | K"},
    {"variance", "the tilted law; weights degenerate in high dimension", "noise",
     "Nusken & Richter 2021, arXiv 2005.05409", "K | K"},
    {"value-regression", "the tilted law; weights exp(r), for mild tilts",
     "policy.control.kind = potential",
     "arXiv 2604.07762 for the regression; here with the conditional mean as target",
     "K every refresh steps | 0"},
    {"trajectory-balance", "the tilted law", "noise",
     "Malkin et al. 2022; Domingo-Enrich et al. 2023, arXiv 2312.02027", "K | K"},
    {"cross-entropy", "the tilted law; weights degenerate in high dimension", "noise",
     "Domingo-Enrich et al. 2023, arXiv 2312.02027", "K | K"},
    {"flow-grpo",
     "p_base exp(r / kl) with kl_to_go, advantage = centred, density = sum, clip = 0; else no "
     "law in closed form",
     "noise, groups", "Liu et al. 2025, arXiv 2505.05470",
     "K - n, and n of the base for kl (K with kl_to_go) | n"},
    {"grpo-guard", "as flow-grpo without kl_to_go", "noise, groups", "GRPO-Guard, arXiv 2510.22319",
     "K - n, and n of the base for kl | n"},
    {"rwr",
     "the tilted law with rollouts = base or weights = path; else exp(tau r) more in every round",
     "nothing but rewards", "Peters & Schaal 2007; Lee et al. 2023, arXiv 2302.12192",
     "K (2 K with path weights) | M"},
    {"best-of-group", "the best of each group, again and again", "groups", "see rwr", "K | M"},
    {"diffusion-nft", "no law in closed form; every step moves mass by the advantage", "groups",
     "Zheng et al. 2025, DiffusionNFT", "K | M"},
    {"advantage-flow", "(gamma + A) p_old after one exact step", "groups",
     "AdvantageFlow, arXiv 2605.26013", "K (+ M with preserve) | M"},
    {"advantage-weighted-matching",
     "with preserve = 1 / strength that of ram: the tilted law to first order in r", "groups",
     "AWM, arXiv 2509.25050", "K (+ M with preserve) | M"},
    {"ram", "the tilted law to first order in r", "groups", "RAM, arXiv 2605.10759", "K + M | M"},
    {"dpo", "preferences of pairs; little change", "groups",
     "Wallace et al. 2023, arXiv 2311.12908; Liu et al. 2025, arXiv 2501.13918", "K + M | M"},
    {"draft", "no law: the reward's maximum, held back by method.kl, capacity and early stopping",
     "reward gradient", "Clark et al. 2023, arXiv 2309.17400", "K - last | last"},
    {"alignprop", "as draft", "reward gradient", "Prabhudesai et al. 2023, arXiv 2310.03739",
     "K - window | window"},
    {"draft-lv", "as draft", "reward gradient", "Clark et al. 2023, arXiv 2309.17400",
     "K - 1 | 1 + copies"},
    {"refl", "as draft", "reward gradient", "Xu et al. 2023, arXiv 2304.05977", "up to K | 1"},
    {"leap-align", "as draft", "reward gradient", "LeapAlign, arXiv 2604.15311", "K | 2"},
    {"drtune", "as draft", "reward gradient", "Wu et al. 2024, arXiv 2405.00760",
     "up to K | 1 + graph_steps"}};

}  // namespace

const std::vector<MethodListing>& method_listing() {
  static const std::vector<MethodListing> listing = [] {
    std::vector<MethodListing> out;
    for (const MethodRow& m : kMethods) {
      out.push_back({m.name, m.samples, m.needs, m.paper, m.calls});
    }
    return out;
  }();
  return listing;
}

std::vector<std::string> methods_without_reward_gradient() {
  std::vector<std::string> out;
  for (const MethodListing& m : method_listing()) {
    if (!m.reward_gradient()) out.push_back(m.name);
  }
  return out;
}

void refuse_missing_gradient(const std::string& method, const std::string& reward,
                             const std::string& why) {
  fail(ErrorKind::kConfig,
       cat("method ", method, " needs the reward's gradient; reward ", reward, " has none",
           why.empty() ? "" : ": ", why),
       cat("use a method that needs none (", join(methods_without_reward_gradient(), ", "),
           "), or learn a stand-in for the reward with surrogate.every"));
}

std::string method_table_text() {
  std::size_t name = 0;
  std::size_t samples = 0;
  for (const MethodListing& m : method_listing()) {
    name = std::max(name, m.name.size());
    samples = std::max(samples, m.samples.size());
  }
  const auto line = [&](const std::string& a, const std::string& b, const std::string& c,
                        const std::string& d) {
    return cat(pad_right(a, name + 2), pad_right(b, samples + 2), pad_right(c, 17), d, "\n");
  };
  std::string out =
      line("method", "samples", "reward gradient",
           "network calls without | with graph (K sampler steps, M noisings, n loss steps)");
  for (const MethodListing& m : method_listing()) {
    out += line(m.name, m.samples, m.reward_gradient() ? "yes" : "no", m.calls);
  }
  return out;
}

void bind(Fields& f, MethodConfig& c) {
  f.value("name", c.name, "see `tiltflow list methods`", one_of(method_names()));
  if (c.name == "adjoint-matching") {
    bind(f, c.adjoint);
  } else if (c.name == "reciprocal-adjoint-matching") {
    bind(f, c.reciprocal);
  } else if (c.name == "value-regression") {
    bind(f, c.value);
  } else if (one_among(c.name, soc_matching_methods())) {
    bind_for(f, c.soc, c.name);
  } else if (one_among(c.name, path_loss_methods())) {
    bind_for(f, c.path, c.name);
  } else if (c.name == "flow-grpo" || c.name == "grpo-guard") {
    bind(f, c.policy_gradient);
  } else if (one_among(c.name, direct_gradient_methods())) {
    bind_for(f, c.direct, c.name);
  } else if (one_among(c.name, endpoint_methods())) {
    bind_for(f, c.endpoint, c.name);
  }
}

std::unique_ptr<FinetuneMethod> make_method(const MethodConfig& c) {
  if (c.own) return c.own();
  if (c.name == "adjoint-matching") return std::make_unique<AdjointMatching>(c.adjoint);
  if (c.name == "basic-adjoint-matching") return std::make_unique<BasicAdjointMatching>();
  if (c.name == "continuous-adjoint") {
    return std::make_unique<BasicAdjointMatching>(/*continuous=*/true);
  }
  if (c.name == "reciprocal-adjoint-matching") {
    return std::make_unique<ReciprocalAdjointMatching>(c.reciprocal);
  }
  if (c.name == "value-regression") return std::make_unique<ValueRegression>(c.value);
  if (one_among(c.name, soc_matching_methods())) {
    return std::make_unique<SocMatching>(c.name, c.soc);
  }
  if (c.name == "flow-grpo" || c.name == "grpo-guard") {
    return std::make_unique<PolicyGradient>(c.policy_gradient, /*guard=*/c.name == "grpo-guard");
  }
  if (one_among(c.name, direct_gradient_methods())) {
    return std::make_unique<DirectGradient>(c.name, c.direct);
  }
  if (one_among(c.name, endpoint_methods())) {
    return std::make_unique<EndpointRegression>(c.name, c.endpoint);
  }
  if (one_among(c.name, path_loss_methods())) return std::make_unique<PathLoss>(c.name, c.path);
  fail(ErrorKind::kConfig,
       cat("method '", c.name, "' is unknown", did_you_mean(c.name, method_names())),
       "see `tiltflow list methods`");
}

void require_method_fits(const FinetuneMethod& method, const RewardInfo& reward,
                         const TransitionTable& table) {
  const MethodNeeds needs = method.needs();
  if (needs.reward_gradient && !reward.has_gradient) {
    refuse_missing_gradient(method.name(), reward.name, "");
  }
  if (!needs.step_density) return;
  for (const Transition& s : table.steps) {
    if (!(s.s > 0)) {
      fail(ErrorKind::kConfig,
           cat("method ", method.name(), " needs noise in every step; sampler ", table.name,
               " has none at t = ", s.t),
           "use sampler auto, euler, exponential or ancestral; or a method without paths: rwr, "
           "diffusion-nft, advantage-flow, ram, dpo, draft");
    }
  }
}

void require_groups_fit(const FinetuneMethod& method, std::int64_t batch,
                        std::int64_t micro_batch) {
  const std::int64_t group = method.needs().group;
  for (const auto& [key, value] :
       {std::pair<const char*, std::int64_t>{"batch", batch}, {"micro_batch", micro_batch}}) {
    if (value % group) {
      fail(ErrorKind::kConfig,
           cat("method ", method.name(), " compares groups of ", group, "; ", key, " = ", value,
               " is no multiple of it"),
           cat("set ", key, " to a multiple of ", group, ", or method.group"));
    }
  }
}

void require_extra_reward_fits(const FinetuneMethod& method, const TransitionTable& table) {
  if (!method.adds_extra_reward()) {
    fail(ErrorKind::kConfig,
         cat("modes.codes: method ", method.name(),
             ", set up like this, takes no reward that depends on where a sample starts"),
         "use flow-grpo, grpo-guard, draft and the other direct gradients, best-of-group, "
         "diffusion-nft, advantage-flow, ram, dpo or rwr, without path weights, candidates or "
         "stored pairs");
  }
  if (table.memoryless) {
    fail(ErrorKind::kConfig,
         cat("modes.codes: under the memoryless sampler ", table.name,
             " a sample does not tell where it started"),
         "use sampler.name = \"ddim\" with a small sampler.parameter (0: the ODE, for methods that "
         "need no noise in every step), or \"constant\"");
  }
}

void require_surroundings_fit(const FinetuneMethod& method, std::int64_t buffer_passes,
                              const PolicyConfig& policy, const FlowModel& base) {
  const MethodNeeds needs = method.needs();
  if (needs.on_policy && buffer_passes > 1) {
    fail(ErrorKind::kConfig,
         cat("method ", method.name(), " needs fresh batches: buffer_passes must be 1, not ",
             buffer_passes),
         "adjoint-matching, path losses, flow-grpo and end-point methods reuse theirs");
  }
  if (needs.potential && !(policy.kind == "control" && policy.control.kind == "potential")) {
    fail(ErrorKind::kConfig, cat("method ", method.name(), " fits a scalar network"),
         "set policy.kind = \"control\" and policy.control.kind = \"potential\"; rwr with rollouts "
         "= \"base\" needs neither");
  }
  if (needs.standard_normal &&
      !is_standard_normal(*base.model, *base.path, base.model->sample_shape())) {
    fail(ErrorKind::kConfig, cat("method ", method.name(), " needs a standard normal base"),
         "model.family = \"gaussian-mixture\" with args.means = \"0 0\" (deviation 1); for other "
         "bases use efficient-adjoint-matching");
  }
}

}  // namespace tiltflow
