// Parity: a model's outputs, input gradients and weight gradients against tensors recorded from a
// reference implementation.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "tiltflow/models/autoencoder/autoencoder.h"
#include "tiltflow/models/clip/vision.h"
#include "tiltflow/models/velocity_model.h"

namespace tiltflow {

struct ParityRow {
  std::string tensor;
  double error = 0;  // largest difference relative to the largest entry of the reference
  double tolerance = 0;
  std::string worst;  // index of the worst entry, with both values
  bool ok() const { return error <= tolerance; }
};

// Reads from `reference` whichever of these are there: x, t, y -> out; cot -> vjp_x, pgrad.NAME;
// tan -> jvp (by central differences in fp64 when `in_double` is given); cfg.x, cfg.t, cfg.y ->
// cfg.out_SCALE (the official guided forward: only the first three channels are guided). Throws
// kBadFile when nothing can be compared or shapes do not fit.
std::vector<ParityRow> compare_with_reference(const VelocityModel& model,
                                              const VelocityModel* in_double,
                                              const ParameterSet& reference);

// An autoencoder against image, mean, logvar, encoded, latent, decoded, vjp_latent (with
// decode_cotangent), vjp_image (with encode_mean_cotangent), latent_odd and decoded_odd, as far as
// they are there. Tolerance 1e-4.
std::vector<ParityRow> compare_with_reference(const Autoencoder& autoencoder,
                                              const ParameterSet& reference);

// A CLIP image tower against pixel_values with image_embeds (or image_features, raw or normalised)
// and vjp_pixels with cotangent. Tolerances 5e-5 and 1e-4.
std::vector<ParityRow> compare_with_reference(const ClipVision& clip,
                                              const ParameterSet& reference);

}  // namespace tiltflow
