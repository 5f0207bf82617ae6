// Which of several ways of doing the same thing the fused blocks (nn/fused) take on CPU, for each
// class of shapes. All ways agree to rounding; which is fastest depends on the processor.
// nn/ways_speed measures them, nn/machine_choices remembers them.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

namespace tiltflow {

// Products x W^T. kLibrary: at::linear (a BLAS in fp32). kOneDnn: oneDNN on the weight as it lies
// in memory. kPacked: oneDNN on a copy of the weight in its own layout.
enum class ProductWay : std::uint8_t { kLibrary, kOneDnn, kPacked };
// kFrozen: nobody trains the weight, so that a packed copy serves many products. kTrained: of a
// weight that changes every step. kWeightGradient: its gradient.
enum class ProductUse : std::uint8_t { kFrozen, kTrained, kWeightGradient };
// kOwn: nn/kernels. kFlash: libtorch's flash attention. kMath: two batched products around a
// softmax.
enum class AttentionWay : std::uint8_t { kOwn, kFlash, kMath };
// Element-wise passes: nn/kernels, or libtorch's operators one after another.
enum class PassWay : std::uint8_t { kOwn, kLibrary };
enum class Pass : std::uint8_t { kGelu, kNorm };

// One choice: its name ("fp32 product, trained, width 64 to 255, 128 rows or more"), its options,
// and the sizes at which it is measured.
struct WaySlot {
  enum class Kind : std::uint8_t { kProduct, kAttention, kPass } kind = Kind::kProduct;
  bool half = false;  // bf16
  ProductUse use = ProductUse::kFrozen;
  Pass pass = Pass::kGelu;
  std::int64_t width = 0;  // product: in and out; attention: a head
  std::int64_t rows = 0;   // product: rows; attention: tokens
  std::string name;
  std::vector<std::uint8_t> options;  // the first is preferred when others are hardly faster
  std::uint8_t rule = 0;              // what is taken when nothing was measured
};
const std::vector<WaySlot>& way_slots();
// "packed", "own", ... of an option of this slot.
std::string option_name(const WaySlot& slot, std::uint8_t option);

class Ways {
 public:
  Ways();  // fixed rules, nothing measured

  ProductWay product(bool half, ProductUse use, std::int64_t rows, std::int64_t in,
                     std::int64_t out) const;
  AttentionWay attention(bool half, std::int64_t tokens, std::int64_t head) const;
  PassWay pass(bool half, Pass pass) const;

  std::uint8_t chosen(std::size_t slot) const { return chosen_[slot]; }
  bool measured(std::size_t slot) const { return measured_[slot]; }
  void choose(std::size_t slot, std::uint8_t option);  // must be one of the slot's options
  // Whether every slot of that type has been measured.
  bool complete(bool half) const;

 private:
  std::vector<std::uint8_t> chosen_;
  std::vector<bool> measured_;
};

// The choices in force in this process; fixed rules until set. Set before networks are called.
const Ways& ways();
void set_ways(Ways ways);

}  // namespace tiltflow
