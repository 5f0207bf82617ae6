// tiltflow parity: a checkpoint's outputs and gradients against recorded ones.
#include "tiltflow/eval/parity.h"

#include <algorithm>
#include <iostream>

#include "options.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/io/safetensors.h"
#include "tiltflow/models/model_file.h"
#include "tiltflow/tensor/aten.h"
#include "verbs.h"

namespace tiltflow::app {
namespace {

struct ParityOptions {
  std::string model, reference, weights;
  std::vector<std::string> args;
  bool json = false;
};

// Which kind of model the reference was recorded from shows in its tensors.
std::vector<ParityRow> parity_rows(const ParityOptions& o) {
  const auto args = key_values(o.args);
  const ParameterSet reference = read_safetensors(o.reference).tensors;
  if (reference.contains("latent")) {
    return compare_with_reference(*load_autoencoder(o.model, args), reference);
  }
  if (reference.contains("pixel_values")) {
    return compare_with_reference(*load_clip_vision(o.model, args), reference);
  }
  const LoadedModel model = load_velocity_model(o.model, args, {}, at::kFloat, o.weights);
  const LoadedModel wide = load_velocity_model(o.model, args, {}, at::kDouble, o.weights);
  return compare_with_reference(*model.model, wide.model.get(), reference);
}

nlohmann::ordered_json parity_json(const ParityOptions& o, const std::vector<ParityRow>& rows,
                                   bool passed) {
  nlohmann::ordered_json out{{"model", o.model},
                             {"reference", o.reference},
                             {"passed", passed},
                             {"rows", nlohmann::ordered_json::array()}};
  for (const ParityRow& row : rows) {
    out["rows"].push_back({{"tensor", row.tensor},
                           {"relative_error", row.error},
                           {"tolerance", row.tolerance},
                           {"ok", row.ok()},
                           {"worst", row.worst}});
  }
  return out;
}

int compare_parity(const ParityOptions& o) {
  std::vector<ParityRow> rows = parity_rows(o);
  const bool ok =
      std::all_of(rows.begin(), rows.end(), [](const ParityRow& row) { return row.ok(); });
  std::stable_sort(rows.begin(), rows.end(), [](const ParityRow& a, const ParityRow& b) {
    return a.error / a.tolerance > b.error / b.tolerance;
  });
  if (o.json) {
    std::cout << parity_json(o, rows, ok).dump() << std::endl;
    return ok ? 0 : 1;
  }
  for (const ParityRow& row : rows) {
    std::cout << pad_right(row.tensor, 44) << pad_left(compact(row.error, 3), 10) << "  tolerance "
              << compact(row.tolerance, 1) << (row.ok() ? "  ok" : "  EXCEEDED at " + row.worst)
              << "\n";
  }
  std::cout << (ok ? "parity: all within tolerance" : "parity: tolerance exceeded") << std::endl;
  return ok ? 0 : 1;
}

}  // namespace

void add_parity(CLI::App& program, Action& action) {
  auto* verb = program.add_subcommand(
      "parity",
      "compare a model's outputs and gradients with recorded ones (exit 1 beyond tolerance)");
  auto o = std::make_shared<ParityOptions>();
  verb->add_option("--model", o->model,
                   "model file: safetensors, sharded safetensors or a PyTorch checkpoint")
      ->required();
  verb->add_option(
          "--reference", o->reference,
          "safetensors with x, t, y, out, cot, vjp_x, ... (velocity models), latent, decoded, "
          "image, mean, ... (autoencoders) or pixel_values, image_embeds, ... (CLIP image towers)")
      ->required();
  add_weights_option(*verb, o->weights);
  add_model_arg_option(*verb, o->args);
  verb->add_flag("--json", o->json, "one JSON object on stdout");
  verb->callback([=, &action] { action = [o] { return compare_parity(*o); }; });
}

}  // namespace tiltflow::app
