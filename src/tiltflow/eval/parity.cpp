#include "tiltflow/eval/parity.h"

#include <cmath>

#include "tiltflow/base/error.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/tensor/aten.h"

namespace tiltflow {
namespace {

constexpr double kForward = 1e-5;
constexpr double kGradient = 1e-4;  // another fp32 order of summation; typically 1e-6

ParityRow compare(const std::string& name, const at::Tensor& found, const at::Tensor& expected,
                  double tolerance) {
  if (found.sizes() != expected.sizes()) {
    fail(ErrorKind::kBadFile, cat("reference tensor '", name, "' is ", shape_text(expected.sizes()),
                                  ", the model gives ", shape_text(found.sizes())));
  }
  const at::Tensor a = found.detach().to(at::kDouble).flatten();
  const at::Tensor b = expected.to(at::kDouble).flatten();
  const double scale = b.abs().max().item<double>();
  const at::Tensor difference = (a - b).abs();
  const std::int64_t worst = difference.argmax().item<std::int64_t>();
  const double error = difference[worst].item<double>() / (scale > 0 ? scale : 1);
  return {name, std::isfinite(error) ? error : std::numeric_limits<double>::infinity(), tolerance,
          cat("flat index ", worst, ": ", compact(a[worst].item<double>(), 8), " against ",
              compact(b[worst].item<double>(), 8))};
}

// The official forward_with_cfg: first half of the batch guided, first three channels only, both
// halves get the result.
at::Tensor official_guided(const VelocityModel& model, const at::Tensor& x, const at::Tensor& t,
                           const at::Tensor& y, double scale) {
  const at::NoGradGuard no_grad;
  const at::Tensor half = x.narrow(0, 0, x.size(0) / 2);
  const at::Tensor out = model.velocity(at::cat({half, half}), t, {y});
  const std::int64_t guided = std::min<std::int64_t>(3, out.size(1));
  const std::vector<at::Tensor> parts = out.narrow(1, 0, guided).chunk(2);
  const at::Tensor mixed = parts[1] + (parts[0] - parts[1]) * scale;
  return at::cat({at::cat({mixed, mixed}), out.narrow(1, guided, out.size(1) - guided)}, 1);
}

// Where a recorded velocity model was called: x [N, ...], t [N], labels y.
struct RecordedInputs {
  at::Tensor x, t;
  Condition condition;
};

RecordedInputs recorded_inputs(const VelocityModel& model, const ParameterSet& reference) {
  RecordedInputs out{reference.at("x").to(at::kFloat), reference.at("t").to(at::kFloat), {}};
  if (!reference.contains("y")) return out;
  out.condition.labels = reference.at("y").to(at::kLong);
  if (out.condition.labels.max().item<std::int64_t>() > model.classes() ||
      out.condition.labels.min().item<std::int64_t>() < 0) {
    fail(ErrorKind::kBadFile,
         cat("reference labels y leave the model's range 0..", model.classes()));
  }
  return out;
}

// Gradients of <velocity, cot>: of the input and of the parameters pgrad.NAME.
void compare_gradients(const VelocityModel& model, const RecordedInputs& in,
                       const ParameterSet& reference, std::vector<ParityRow>& rows) {
  const at::Tensor cotangent = reference.at("cot").to(at::kFloat);
  if (reference.contains("vjp_x")) {
    rows.push_back(compare("vjp_x", model.vjp(in.x, in.t, in.condition, cotangent).input_gradient,
                           reference.at("vjp_x"), kForward));
  }
  const ParameterSet weights = clone(model.parameters(), true);
  const auto trainable = model.rebind(weights, {});
  std::vector<std::string> names;
  std::vector<at::Tensor> wanted;
  for (const auto& [name, tensor] : reference) {
    if (starts_with(name, "pgrad.") && weights.contains(name.substr(6))) {
      names.push_back(name);
      wanted.push_back(weights.at(name.substr(6)));
    }
  }
  if (names.empty()) return;
  const at::AutoGradMode grad(true);
  const auto found = torch::autograd::grad(
      {(trainable->velocity(in.x, in.t, in.condition) * cotangent).sum()}, wanted);
  for (std::size_t i = 0; i < names.size(); ++i) {
    rows.push_back(compare(names[i], found[i], reference.at(names[i]), kGradient));
  }
}

// The derivative along the tangent, by central differences in double.
ParityRow compare_directional(const VelocityModel& in_double, const RecordedInputs& in,
                              const ParameterSet& reference) {
  const at::NoGradGuard no_grad;
  const at::Tensor wide = in.x.to(at::kDouble);
  const at::Tensor tangent = reference.at("tan").to(at::kDouble);
  const at::Tensor time = in.t.to(at::kDouble);
  const double h = 1e-5;
  return compare("jvp",
                 (in_double.velocity(wide + tangent * h, time, in.condition) -
                  in_double.velocity(wide - tangent * h, time, in.condition)) /
                     (2 * h),
                 reference.at("jvp"), kForward);
}

}  // namespace

std::vector<ParityRow> compare_with_reference(const VelocityModel& model,
                                              const VelocityModel* in_double,
                                              const ParameterSet& reference) {
  std::vector<ParityRow> rows;
  const auto has = [&](const char* name) { return reference.contains(name); };
  if (has("x") && has("t")) {
    const RecordedInputs in = recorded_inputs(model, reference);
    if (has("out")) {
      const at::NoGradGuard no_grad;
      rows.push_back(
          compare("out", model.velocity(in.x, in.t, in.condition), reference.at("out"), kForward));
    }
    if (has("cot")) compare_gradients(model, in, reference, rows);
    if (has("tan") && has("jvp") && in_double) {
      rows.push_back(compare_directional(*in_double, in, reference));
    }
  }
  if (has("cfg.x") && has("cfg.t") && has("cfg.y")) {
    for (const auto& [name, tensor] : reference) {
      if (!starts_with(name, "cfg.out_")) continue;
      const at::Tensor found = official_guided(
          model, reference.at("cfg.x").to(at::kFloat), reference.at("cfg.t").to(at::kFloat),
          reference.at("cfg.y").to(at::kLong), std::atof(name.c_str() + 8));
      rows.push_back(compare(name, found, tensor, kForward));
    }
  }
  if (rows.empty()) {
    fail(ErrorKind::kBadFile, "the reference holds nothing to compare",
         "expected tensors x, t, y with out, vjp_x + cot, jvp + tan, pgrad.NAME, or cfg.x, cfg.t, "
         "cfg.y with cfg.out_SCALE");
  }
  return rows;
}

std::vector<ParityRow> compare_with_reference(const Autoencoder& autoencoder,
                                              const ParameterSet& reference) {
  constexpr double kTolerance = 1e-4;
  std::vector<ParityRow> rows;
  const auto has = [&](const char* name) { return reference.contains(name); };
  const auto decoded = [&](const char* latent, const char* image) {
    if (!has(latent) || !has(image)) return;
    const at::NoGradGuard no_grad;
    rows.push_back(
        compare(image, autoencoder.decode(reference.at(latent)), reference.at(image), kTolerance));
  };
  decoded("latent", "decoded");
  decoded("latent_odd", "decoded_odd");
  const at::AutoGradMode grad(true);
  if (has("image")) {
    const at::Tensor image =
        reference.at("image").clone().set_requires_grad(has("encode_mean_cotangent"));
    const Moments moments = autoencoder.encode(image);
    for (const char* name : {"mean", "encoded"}) {
      if (has(name)) rows.push_back(compare(name, moments.mean, reference.at(name), kTolerance));
    }
    if (has("logvar") && moments.logvar.defined()) {
      rows.push_back(compare("logvar", moments.logvar, reference.at("logvar"), kTolerance));
    }
    if (has("encode_mean_cotangent") && has("vjp_image")) {
      rows.push_back(
          compare("vjp_image",
                  torch::autograd::grad(
                      {(moments.mean * reference.at("encode_mean_cotangent")).sum()}, {image})[0],
                  reference.at("vjp_image"), kTolerance));
    }
  }
  if (has("latent") && has("decode_cotangent") && has("vjp_latent")) {
    const at::Tensor latent = reference.at("latent").clone().set_requires_grad(true);
    rows.push_back(compare(
        "vjp_latent",
        torch::autograd::grad(
            {(autoencoder.decode(latent) * reference.at("decode_cotangent")).sum()}, {latent})[0],
        reference.at("vjp_latent"), kTolerance));
  }
  if (rows.empty()) {
    fail(ErrorKind::kBadFile, "the reference has nothing to compare an autoencoder with",
         "expected image with mean, or latent with decoded");
  }
  return rows;
}

std::vector<ParityRow> compare_with_reference(const ClipVision& clip,
                                              const ParameterSet& reference) {
  std::vector<ParityRow> rows;
  const at::AutoGradMode grad(true);
  const at::Tensor pixels =
      reference.at("pixel_values").to(at::kFloat).clone().set_requires_grad(true);
  const at::Tensor embeds = clip.embed(pixels);
  const at::Tensor unit = embeds / embeds.norm(2, -1, true);
  const bool raw = !reference.contains("image_features") ||
                   reference.contains(
                       "image_features_normalised");  // CLIPModel records normalised features alone
  for (const auto& [name, found] : {std::pair{"image_embeds", embeds},
                                    {"image_features", raw ? embeds : unit},
                                    {"image_features_normalised", unit}}) {
    if (reference.contains(name)) rows.push_back(compare(name, found, reference.at(name), 5e-5));
  }
  if (reference.contains("cotangent") && reference.contains("vjp_pixels")) {
    rows.push_back(
        compare("vjp_pixels",
                torch::autograd::grad({(embeds * reference.at("cotangent")).sum()}, {pixels})[0],
                reference.at("vjp_pixels"), kGradient));
  }
  if (rows.empty()) {
    fail(ErrorKind::kBadFile, "the reference has nothing to compare a CLIP image tower with",
         "expected pixel_values with image_embeds");
  }
  return rows;
}

}  // namespace tiltflow
