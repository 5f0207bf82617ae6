// Many samples to files: in parts, so that the work can be interrupted, continued and shared
// between processes.
#pragma once

#include <filesystem>
#include <functional>
#include <map>
#include <string>

#include "tiltflow/base/inputs.h"
#include "tiltflow/sampler/sample.h"

namespace tiltflow {

struct GenerateOptions {
  std::filesystem::path out;
  std::int64_t n = 64;
  std::int64_t first = 0;
  std::int64_t chunk = 32;  // samples first..first+n; chunk: samples per independent piece of work
  std::int64_t part = 256;  // samples per part: what an interruption can lose
  std::int64_t shard = 0;
  std::int64_t shards = 1;           // this process draws every shards-th part
  bool resume = false;               // keep the parts that are there; several shards always do
  bool overwrite = false;            // remove what the folder holds of `tiltflow sample`
  bool png = true;                   // one PNG file a sample (image models)
  std::string pack = "safetensors";  // safetensors: samples.safetensors as drawn; npz: samples.npz,
                                     // uint8 [N, H, W, C]; none
  bool keep_noise = false;           // also the initial noise, tensor "noise" (safetensors only)
  std::int64_t grid = 64;            // pictures in grid.png; 0 = none
  std::int64_t columns = 8;
  std::map<std::string, std::string>
      request;    // what was asked for; parts of another request are refused
  Inputs inputs;  // the files it reads; an entry of `request` with the name of one is not compared
  std::function<void(std::int64_t done)> progress;
};

struct GenerateResult {
  bool complete = false;  // all parts of all shards are there and packed
  std::int64_t drawn = 0;
  std::int64_t kept = 0;
  std::int64_t evaluations = 0;
  std::int64_t accepted = 0;
  std::int64_t rejected = 0;  // ODE, per sample; see Draws
};

// Sample i is the same whatever n, chunk, part, shard. Files: OUT/request.json, OUT/parts/ (until
// packed), OUT/000000.png, ..., OUT/samples.*, OUT/grid.png. samples.* hold the law of the sampler;
// PNG files show Draws::prediction, the same samples without the noise of a last step that leaves
// some. Throws kConfig when OUT holds samples of another request. Packing holds all samples in
// memory.
GenerateResult generate(const VelocityField& field, const SamplerConfig& sampler, const Path& path,
                        at::IntArrayRef shape, const RandomStreams& streams,
                        const LabelSource& labels,
                        const std::function<at::Tensor(const at::Tensor&)>& decode,
                        const GenerateOptions& options);

}  // namespace tiltflow
