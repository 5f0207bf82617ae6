#include "tiltflow/nn/ways_speed.h"

#include <ATen/Parallel.h>
#include <time.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <chrono>
#include <functional>
#include <limits>

#include "tiltflow/nn/fused.h"
#include "tiltflow/nn/linear.h"
#include "tiltflow/nn/onednn.h"
#include "tiltflow/tensor/aten.h"
#include "tiltflow/tensor/device.h"

namespace tiltflow {
namespace {

using Clock = std::chrono::steady_clock;
using Work = std::function<void()>;

constexpr int kRepetitions = 5;
constexpr double kEnough = 0.004;  // seconds spent on one candidate, after two repetitions

// Time of the calling thread where it does all the work: other programs disturb that less.
double now() {
  if (!compute_device().is_cpu() || at::get_num_threads() > 1) {
    return std::chrono::duration<double>(Clock::now().time_since_epoch()).count();
  }
  timespec time{};
  ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

double seconds_of(const Work& work) {
  const double begin = now();
  work();
  return now() - begin;
}

// Least seconds of each candidate; the first call of each warms up.
std::vector<double> least_seconds(const std::vector<Work>& candidates) {
  for (const Work& work : candidates) work();
  std::vector<double> least(candidates.size(), std::numeric_limits<double>::infinity());
  std::vector<double> spent(candidates.size(), 0);
  for (int repetition = 0; repetition < kRepetitions; ++repetition) {
    for (std::size_t i = 0; i < candidates.size(); ++i) {
      if (repetition >= 2 && spent[i] > kEnough) continue;
      const double seconds = seconds_of(candidates[i]);
      spent[i] += seconds;
      least[i] = std::min(least[i], seconds);
    }
  }
  return least;
}

at::Tensor numbers(at::IntArrayRef shape, bool half) {
  return at::linspace(-1, 1, c10::multiply_integers(shape))
      .view(shape)
      .to(half ? at::kBFloat16 : at::kFloat);
}

std::vector<Work> product_candidates(const WaySlot& slot) {
  const at::Tensor x = numbers({slot.rows, slot.width}, slot.half);
  const at::Tensor w = numbers({slot.width, slot.width}, slot.half);
  const bool gradient = slot.use == ProductUse::kWeightGradient;
  std::vector<Work> out;
  for (const std::uint8_t option : slot.options) {
    switch (static_cast<ProductWay>(option)) {
      case ProductWay::kLibrary:
        if (gradient) {
          out.push_back([x] { x.t().mm(x); });
        } else {
          out.push_back([x, w] { at::linear(x, w); });
        }
        break;
      case ProductWay::kOneDnn:
        if (gradient) {
          out.push_back(
              [x] { times_packed(x.t(), x.t(), {}); });  // what is left out costs a twentieth
        } else {
          out.push_back([x, w] { times_packed(x, w, {}); });
        }
        break;
      case ProductWay::kPacked:
        out.push_back([x, packed = packed_weight(w)] { times_packed(x, packed, {}); });
        break;
    }
  }
  return out;
}

// Forward and backward passes under each option of a slot.
std::vector<Work> candidates_under(const Ways& base, std::size_t slot,
                                   const std::function<at::Tensor(const at::Tensor&)>& function,
                                   const at::Tensor& x) {
  std::vector<Work> out;
  for (const std::uint8_t option : way_slots()[slot].options) {
    Ways tried = base;
    tried.choose(slot, option);
    out.push_back([tried, function, x] {
      set_ways(tried);
      const at::AutoGradMode grad(true);
      const at::Tensor input = x.detach().set_requires_grad(true);
      const at::Tensor y = function(input);
      torch::autograd::grad({y}, {input}, {y.detach()});
    });
  }
  return out;
}

std::vector<Work> candidates_of(const Ways& base, std::size_t index) {
  const WaySlot& slot = way_slots()[index];
  if (slot.kind == WaySlot::Kind::kProduct) return product_candidates(slot);
  if (slot.kind == WaySlot::Kind::kAttention) {
    return candidates_under(
        base, index, [](const at::Tensor& packed) { return fused::attention(packed, 1); },
        numbers({1, slot.rows, 3 * slot.width}, slot.half));
  }
  if (slot.pass == Pass::kGelu) {
    return candidates_under(base, index, fused::gelu,
                            numbers({slot.rows, 4 * slot.width}, slot.half));
  }
  const at::Tensor row = numbers({1, slot.width}, false);
  const at::ScalarType type = slot.half ? at::kBFloat16 : at::kFloat;
  return candidates_under(
      base, index,
      [row, type](const at::Tensor& x) { return fused::modulated_norm(x, row, row, type); },
      numbers({1, slot.rows, slot.width}, false));
}

// Puts the choices back that were in force.
class RestoredWays {
 public:
  RestoredWays() : before_(ways()) {}
  ~RestoredWays() { set_ways(before_); }
  RestoredWays(const RestoredWays&) = delete;
  RestoredWays& operator=(const RestoredWays&) = delete;

 private:
  Ways before_;
};

}  // namespace

std::size_t preferred(const std::vector<double>& seconds) {
  constexpr double kMargin = 0.97;
  const auto least = std::min_element(seconds.begin(), seconds.end());
  return *least < kMargin * seconds.front() ? static_cast<std::size_t>(least - seconds.begin()) : 0;
}

Ways measured_ways(Ways known, bool half) {
  const RestoredWays restored;
  const at::NoGradGuard no_grad;
  const bool onednn = can_use_onednn(half ? at::kBFloat16 : at::kFloat);
  for (std::size_t i = 0; i < way_slots().size(); ++i) {
    const WaySlot& slot = way_slots()[i];
    if (slot.half != half || known.measured(i)) continue;
    const bool only_library = slot.kind == WaySlot::Kind::kProduct && !onednn;
    if (only_library) {
      known.choose(i, static_cast<std::uint8_t>(ProductWay::kLibrary));
    } else if (slot.options.size() == 1) {
      known.choose(i, slot.options.front());
    } else {
      known.choose(i, slot.options[preferred(least_seconds(candidates_of(known, i)))]);
    }
  }
  return known;
}

bool bf16_pays(const ProductSpeeds& speeds) {
  constexpr double kGain = 1.2;
  return speeds.fp32 > 0 && speeds.bf16 >= kGain * speeds.fp32;
}

ProductSpeeds measure_product_speeds() {
  constexpr std::int64_t kSize = 256;
  constexpr double kVerySlow = 0.01;  // seconds of one product
  const at::NoGradGuard no_grad;
  const auto rate = [&](bool half) {
    const at::Tensor a = to_compute_device(numbers({kSize, kSize}, half));
    const bool onednn = compute_device().is_cpu() && can_use_onednn(a.scalar_type());
    std::vector<Work> candidates{[&] {
      at::linear(a, a);
      synchronize_compute_device();
    }};
    if (onednn) candidates.push_back([&] { times_packed(a, a, {}); });
    const double first = seconds_of(candidates.front());  // libraries set themselves up
    double least = std::min(first, seconds_of(candidates.front()));
    if (least < kVerySlow) {
      const std::vector<double> seconds = least_seconds(candidates);
      least = *std::min_element(seconds.begin(), seconds.end());
    }
    return 2.0 * kSize * kSize * kSize / least / 1e9;
  };
  ProductSpeeds speeds;
  speeds.fp32 = rate(false);
  speeds.bf16 = rate(true);
  return speeds;
}

}  // namespace tiltflow
