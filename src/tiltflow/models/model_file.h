// Models as files: tensors whose metadata says what the network is; foreign files (PyTorch,
// sharded) are recognised by their tensors.
#pragma once

#include <filesystem>
#include <map>
#include <memory>
#include <string>

#include "tiltflow/io/safetensors.h"
#include "tiltflow/models/classifier/classifier.h"
#include "tiltflow/models/stated_identity.h"
#include "tiltflow/models/velocity_model.h"

namespace tiltflow {

struct LoadedModel {
  std::unique_ptr<VelocityModel> model;
  Stated path;        // interpolation path by what the file says, see stated_identity.h
  Stated prediction;  // likewise: velocity, noise, score
  std::map<std::string, std::string> metadata;
};

// `section`: which state dict of a PyTorch checkpoint, see read_tensors. `args` override what
// metadata and tensors say (official constructor names). Tensors become fp32 (or `dtype`). Throws
// kBadFile: unreadable, unknown architecture, missing/unexpected/mis-shaped tensors (all listed).
LoadedModel load_velocity_model(const std::filesystem::path& path,
                                const std::map<std::string, std::string>& args = {},
                                ModelRuntime runtime = {}, at::ScalarType dtype = at::kFloat,
                                const std::string& section = "");
// Fresh weights of a family. Throws kConfig.
std::unique_ptr<VelocityModel> create_velocity_model(const ModelSpec& spec, std::uint64_t seed,
                                                     ModelRuntime runtime = {});
// Adds family and arguments to `metadata`.
void save_velocity_model(const std::filesystem::path& path, const VelocityModel& model,
                         const ParameterSet& parameters,
                         std::map<std::string, std::string> metadata = {});

std::shared_ptr<const Classifier> load_classifier(const std::filesystem::path& path);
void save_classifier(const std::filesystem::path& path, const ClassifierConfig& config,
                     const ParameterSet& parameters,
                     std::map<std::string, std::string> metadata = {});

// The metadata of a model's file: `metadata` with family and constructor arguments, and the
// arguments read back. Throws kBadFile.
std::map<std::string, std::string> model_metadata(std::map<std::string, std::string> metadata,
                                                  const ModelSpec& spec);
std::map<std::string, std::string> metadata_args(const std::map<std::string, std::string>& metadata,
                                                 const std::string& where);

// "sit", "mlp", "controlled", "gaussian-mixture", "product", "classifier", "gan", "mlp-generator",
// "vae", from metadata, else from the tensors; also names what other loaders read (AutoencoderKL,
// AutoencoderTiny, CLIP, aesthetic head) and what nobody here reads (foreign_model.h); "" =
// unknown.
std::string model_family(const ParameterSet& tensors,
                         const std::map<std::string, std::string>& metadata);
const std::vector<std::string>& velocity_model_families();
// Throws kBadFile: what the file holds instead of `wanted` ("a velocity model"), and the hint.
[[noreturn]] void refuse_model(const std::filesystem::path& path, const TensorFile& file,
                               const std::string& wanted, const std::string& hint);

}  // namespace tiltflow
