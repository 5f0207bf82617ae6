// tiltflow doctor: what machine and libraries the program found, and whether anything looks wrong.
#include <ATen/Version.h>
#include <torch/version.h>

#include <iostream>

#include "tiltflow/base/machine.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/bench/network_speed.h"
#include "tiltflow/models/precision_choice.h"
#include "tiltflow/models/runtime_config.h"
#include "tiltflow/nn/fused_cuda.h"
#include "tiltflow/nn/machine_choices.h"
#include "tiltflow/nn/onednn.h"
#include "tiltflow/tensor/aten.h"
#include "tiltflow/tensor/device.h"
#include "tiltflow/tensor/parallel.h"
#include "verbs.h"

namespace tiltflow::app {

namespace {

// The precisions that oneDNN's products have with this libtorch on this processor.
std::string onednn_products() {
  const bool fp32 = can_use_onednn(at::kFloat);
  const bool bf16 = can_use_onednn(at::kBFloat16);
  if (fp32 && bf16) return "fp32 and bf16";
  return fp32 ? "fp32" : bf16 ? "bf16" : "none";
}

// What was measured here, now or earlier, and where that is kept.
void print_choices() {
  const MachineChoices& found =
      machine_choices({.speeds = true, .fp32_ways = true, .bf16_ways = true});
  const std::filesystem::path file = choices_file(machine_key());
  std::cout << "measured on one piece of work: products of 256 x 256 at "
            << fixed(found.speeds.fp32, 0) << " GFLOP/s in fp32, " << fixed(found.speeds.bf16, 0)
            << " in bf16; precision = \"auto\" means "
            << (bf16_pays(found.speeds) ? "bf16" : "fp32") << " here\n";
  std::cout << "kernels = \"fused\" takes (oneDNN products: " << onednn_products() << "; "
            << (file.empty() ? "measured in every process: there is no cache folder"
                             : cat("kept in ", file.string()))
            << "):\n";
  for (std::size_t i = 0; i < way_slots().size(); ++i) {
    std::cout << "  " << pad_right(way_slots()[i].name, 68)
              << option_name(way_slots()[i], found.ways.chosen(i)) << "\n";
  }
}

}  // namespace

void add_doctor(CLI::App& program, Action& action) {
  auto* verb = program.add_subcommand("doctor", "check the machine and the libraries");
  verb->callback([&action] {
    action = [] {
      std::cout << "libtorch " << TORCH_VERSION << ", CPU kernels " << at::get_cpu_capability()
                << ", fused kernels " << kernels_name(apply(ComputeConfig{})) << "\n";
      print_choices();
      const Machine machine = read_machine("/");
      const UsableCores cores = usable_cores(machine);
      const UsableMemory memory = usable_memory(machine);
      std::cout << "cores " << cores.count << " of " << machine.online << " (" << cores.reason
                << "), CUDA " << (at::hasCUDA() ? "available" : "not available") << "\n";
      std::cout << "memory " << format_bytes(memory.bytes) << " (" << memory.reason << ")\n";
      const double single = gemm_peak(1, false);
      const double all = gemm_peak(hardware_cores(), false);
      const double bf16 = gemm_peak(hardware_cores(), true);
      std::cout << "matrix products: fp32 " << fixed(single, 0) << " GFLOP/s on one core, "
                << fixed(all, 0) << " on all; bf16 " << fixed(bf16, 0) << " on all\n";
      if (at::hasCUDA()) {
        set_compute_device("cuda");
        std::cout << "matrix products on " << compute_device().str() << ": fp32 "
                  << fixed(gemm_peak(1, false), 0) << " GFLOP/s, bf16 "
                  << fixed(gemm_peak(1, true), 0) << ", memory "
                  << fixed(device_total_bytes() / 1e9, 0) << " GB"
                  << (fused::cuda::kBuilt ? "" : "; built without CUDA kernels") << "\n";
        set_compute_device("cpu");
      }
      const int nodes = memory_nodes();
      if (nodes > 1) {
        std::cout << nodes
                  << " memory nodes (NUMA): threads are not bound to them; one process a node, "
                     "started under numactl by torchrun, Slurm or MPI, keeps its memory near\n";
      }
      int problems = 0;
      const auto warn = [&](const std::string& text) {
        std::cout << "warning: " << text << "\n";
        ++problems;
      };
      if (single < 5) warn("matrix products are very slow: libtorch seems to use a reference BLAS");
      if (hardware_cores() > 1 && all < 1.3 * single) {
        warn(
            "several workers are hardly faster than one: is the machine busy, or are its cores "
            "shared?");
      }
      if (const std::string slow = slow_bf16(machine_choices({.speeds = true}).speeds);
          !slow.empty()) {
        warn(cat(slow, ": leave compute.precision at fp32 or auto"));
      }
      std::cout << (problems ? "" : "all well\n") << std::flush;
      return 0;
    };
  });
}

}  // namespace tiltflow::app
