// Fuzzing of every reader of foreign files: seeds of its corpus are cut, damaged, spliced and
// repeated for a bounded time. A reader may refuse (tiltflow::Error) or accept, nothing else: no
// other exception, no crash, no absurd allocation. A failing input is kept in the working folder.
// Best run from a build with sanitizers.
//   tiltflow_fuzz TARGET|all [SECONDS]        targets: see kTargets
#include <sys/resource.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>
#include <random>

#include "tiltflow/base/error.h"
#include "tiltflow/base/file.h"
#include "tiltflow/base/log.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/io/dataset.h"
#include "tiltflow/io/image.h"
#include "tiltflow/io/json_lines.h"
#include "tiltflow/io/latents.h"
#include "tiltflow/io/npy.h"
#include "tiltflow/io/npz.h"
#include "tiltflow/io/pickle.h"
#include "tiltflow/io/picture.h"
#include "tiltflow/io/tensor_file.h"
#include "tiltflow/models/autoencoder/autoencoder.h"
#include "tiltflow/models/clip/vision.h"
#include "tiltflow/models/model_file.h"
#include "tiltflow/policy/lora.h"
#include "tiltflow/sampler/labels.h"
#include "tiltflow/tensor/aten.h"
#include "tiltflow/train/finetuning.h"

namespace tiltflow {
namespace {

namespace fs = std::filesystem;
const fs::path kSource = TILTFLOW_SOURCE_DIR;
using Bytes = std::string;

struct Target {
  std::vector<Bytes> seeds;
  std::function<void(const fs::path& file, const Bytes& bytes)> read;
};

Bytes file(const char* name) { return read_file(kSource / name); }

using Targets = std::map<std::string, Target>;

void add_models(Targets& out) {
  const Bytes tensors = file("tests/golden/sit/guided.safetensors");
  out["safetensors"] = {
      {tensors, file("tests/golden/lora/peft_linear_rslora/adapter_model.safetensors")},
      [](const fs::path& f, const Bytes&) { read_safetensors(f); }};
  out["torch"] = {
      {file("tests/golden/torch/zip.pt"), file("tests/golden/torch/stream.pt"),
       file("tests/golden/torch/trainer.pt"), file("tests/golden/clip/aesthetic_random_head.pth")},
      [](const fs::path& f, const Bytes&) { read_tensors(f); }};
  out["index"] = {{R"({"metadata": {"total_size": 10}, "weight_map": )"
                   R"({"a": "x-00001-of-00002.safetensors", "b": "../x.safetensors"}})"},
                  [](const fs::path& f, const Bytes&) { read_tensors(f); }};
  out["model"] = {
      {file("tests/golden/sit/sit_a_ema.safetensors")},
      [](const fs::path& f, const Bytes&) { load_velocity_model(f, {{"num_heads", "4"}}); }};
  out["autoencoder"] = {{file("tests/golden/diffusers/taesd/diffusion_pytorch_model.safetensors")},
                        [](const fs::path& f, const Bytes&) { load_autoencoder(f); }};
  out["clip"] = {{file("tests/golden/clip/vision_gelu/model.safetensors")},
                 [](const fs::path& f, const Bytes&) { load_clip_vision(f); }};
}

void add_pictures(Targets& out) {
  const auto pictures = [](std::initializer_list<const char*> names) {
    Target target{{}, [](const fs::path&, const Bytes& b) { decode_picture(b, "x"); }};
    for (const char* name : names) {
      target.seeds.push_back(file((std::string("tests/golden/pictures/") + name).c_str()));
    }
    return target;
  };
  out["png"] =
      pictures({"rgb.png", "palette-trns.png", "interlaced.png", "grey16.png", "grey2bit.png"});
  out["jpeg"] = pictures({"rgb.jpg", "grey.jpg", "progressive.jpg", "ycck.jpg", "rotated.jpg"});
  out["webp"] = pictures({"lossy.webp", "lossless.webp", "alpha.webp", "animated.webp"});
  out["bmp"] = pictures(
      {"rgb.bmp", "bilevel.bmp", "rgb565.bmp", "four-bit-top-down.bmp", "masks-with-alpha.bmp"});
}

void add_texts(Targets& out) {
  out["config"] = {{file("recipes/mnist-ink.toml"), file("recipes/mnist-class.toml")},
                   [](const fs::path& f, const Bytes&) { load_config<FinetuneConfig>(f, {}); }};
  out["json-lines"] = {{"{\"step\": 1, \"loss\": 0.5}\n{\"step\": 2}\n"},
                       [](const fs::path& f, const Bytes&) { read_json_lines(f); }};
  out["labels"] = {{"1, 2, 3\n4 5\n"},
                   [](const fs::path&, const Bytes& b) { parse_labels(b, "x"); }};
}

void add_arrays(Targets& out) {
  out["npy"] = {{file("tests/golden/numpy/version2.npy"), file("tests/golden/numpy/version3.npy")},
                [](const fs::path&, const Bytes& b) { parse_npy(b, "x"); }};
  out["npz"] = {{file("tests/golden/numpy/statistics.npz"), file("tests/golden/numpy/arrays.npz")},
                [](const fs::path& f, const Bytes&) { read_npz(f); }};
}

// Adapters are a folder: the tensors stand there, the configuration changes.
void add_adapters(Targets& out, const fs::path& folder) {
  write_file_atomic(folder / "adapter_model.safetensors",
                    file("tests/golden/lora/peft_linear_rslora/adapter_model.safetensors"));
  out["peft"] = {{file("tests/golden/lora/peft_linear_rslora/adapter_config.json")},
                 [folder](const fs::path&, const Bytes& b) {
                   write_file_atomic(folder / "adapter_config.json", b);
                   read_adapters(folder, 1);
                 }};
}

void add_data(Targets& out, const fs::path& folder) {
  make_directories(folder / "idx");
  const Bytes images{
      "\0\0\x08\x03\0\0\0\x02\0\0\0\x02\0\0\0\x02"
      "abcdefgh",
      24};
  const Bytes labels{"\0\0\x08\x01\0\0\0\x02\1\2", 10};
  write_file_atomic(folder / "idx/train-labels-idx1-ubyte", labels);
  out["idx"] = {{images}, [folder](const fs::path&, const Bytes& b) {
                  write_file_atomic(folder / "idx/train-images-idx3-ubyte", b);
                  read_dataset({"idx", (folder / "idx").string()}, "train");
                }};
  LatentFile latents{at::rand({2, 1, 2, 2}), at::rand({2, 1, 2, 2}), at::arange(2), 0.5, 0, "x"};
  write_latents(folder / "latents", latents);
  out["latents"] = {{read_file(folder / "latents")},
                    [](const fs::path& f, const Bytes&) { read_latents(f); }};
}

Targets targets(const fs::path& folder) {
  Targets out;
  add_models(out);
  add_pictures(out);
  add_texts(out);
  add_arrays(out);
  add_adapters(out, folder);
  add_data(out, folder);
  return out;
}

Bytes mutate(const std::vector<Bytes>& seeds, std::mt19937_64& random) {
  Bytes out = seeds[random() % seeds.size()];
  const auto place = [&] {  // headers and directories matter most: half of the time near an end
    if (out.empty()) return std::size_t{0};
    const std::size_t near = std::min<std::size_t>(out.size(), 512);
    switch (random() % 4) {
      case 0:
        return random() % near;
      case 1:
        return out.size() - 1 - random() % near;
      default:
        return random() % out.size();
    }
  };
  for (std::uint64_t rounds = 1 + random() % 4; rounds > 0 && !out.empty(); --rounds) {
    const std::size_t at = place();
    const std::size_t length = 1 + random() % std::min<std::size_t>(64, out.size() - at);
    static const std::uint64_t kEvil[] = {
        0,          1, 0x7fffffff, 0x80000000, 0xffffffff, 0x7fffffffffffffff, 0xffffffffffffffff,
        0x100000000};
    switch (random() % 7) {
      case 0:
        out[at] = static_cast<char>(random());
        break;
      case 1:
        out.resize(at);
        break;
      case 2:
        out.erase(at, length);
        break;
      case 3:
        out.insert(at, out.substr(at, length));
        break;
      case 4: {
        const Bytes& other = seeds[random() % seeds.size()];
        const std::size_t from = other.empty() ? 0 : random() % other.size();
        out.replace(at, length, other.substr(from, length));
        break;
      }
      case 5: {
        const std::uint64_t value = kEvil[random() % 8];
        for (std::size_t i = 0; i < 8 && at + i < out.size(); ++i) {
          out[at + i] = static_cast<char>(value >> (8 * i));
        }
        break;
      }
      default:
        for (char& c : out) {
          if (c >= '0' && c <= '9' && random() % 50 == 0) {
            c = static_cast<char>('0' + random() % 10);
          }
        }
    }
  }
  return out;
}

// Returns the number of inputs tried.
long run(const std::string& name, const Target& target, double seconds, const fs::path& folder,
         std::uint64_t seed) {
  std::mt19937_64 random(seed);
  const fs::path path = folder / "input";
  const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
  long tried = 0;
  long accepted = 0;
  for (const Bytes& good : target.seeds) {
    write_file_atomic(path, good);
    try {
      target.read(path, good);
    } catch (const Error& error) {
      if (name != "index") {
        std::fprintf(stderr, "%s: a seed is refused: %s\n", name.c_str(), error.what());
        std::exit(1);
      }
    }
  }
  while (std::chrono::steady_clock::now() < end) {
    const Bytes bytes = mutate(target.seeds, random);
    write_file_atomic(path, bytes);
    try {
      target.read(path, bytes);
      ++accepted;
    } catch (const Error&) {
    } catch (const std::exception& error) {
      const fs::path kept = cat("fuzz-", name, "-", tried);
      write_file_atomic(kept, bytes);
      std::fprintf(stderr, "%s: %s (input kept as %s)\n", name.c_str(), error.what(), kept.c_str());
      std::exit(1);
    }
    ++tried;
  }
  std::printf("%-12s %8ld inputs, %ld accepted\n", name.c_str(), tried, accepted);
  std::fflush(stdout);
  return tried;
}

}  // namespace
}  // namespace tiltflow

int main(int argc, char** argv) {
  using namespace tiltflow;
  const std::string wanted = argc > 1 ? argv[1] : "all";
  const double seconds = argc > 2 ? std::atof(argv[2]) : 10;
  set_log_level(LogLevel::kQuiet);
#if !defined(__SANITIZE_ADDRESS__)
  const rlimit limit{rlim_t{12} << 30, rlim_t{12} << 30};  // an absurd allocation fails at once
  ::setrlimit(RLIMIT_AS, &limit);
#endif
  const ScratchFolder folder("tiltflow-fuzz");
  bool found = false;
  for (const auto& [target, what] : targets(folder.path())) {
    if (wanted != "all" && wanted != target) continue;
    found = true;
    run(target, what, seconds, folder.path(), 1);
  }
  if (!found) std::fprintf(stderr, "no target '%s'\n", wanted.c_str());
  return found ? 0 : 2;
}
