#include "tiltflow/models/precision_choice.h"

#include "tiltflow/base/log.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/nn/machine_choices.h"
#include "tiltflow/tensor/device.h"

namespace tiltflow {
namespace {

// Loads and checks of one run ask several times.
void say_once(const std::string& text, void (*say)(const std::string&)) {
  static std::string said;
  if (text != said) say(text);
  said = text;
}

}  // namespace

MatmulPrecision chosen_precision(const ComputeConfig& config) {
  if (config.precision == "fp32") return MatmulPrecision::kFull;
  const ProductSpeeds& speeds = machine_choices({.speeds = true}).speeds;
  if (config.precision == "auto") {
    const bool half = bf16_pays(speeds);
    say_once(cat("precision ", half ? "bf16" : "fp32", ": products run at ", fixed(speeds.fp32, 0),
                 " GFLOP/s in fp32, ", fixed(speeds.bf16, 0), " in bf16"),
             log_info);
    return half ? MatmulPrecision::kBf16 : MatmulPrecision::kFull;
  }
  const MatmulPrecision asked = parse_precision(config.precision);
  const std::string slow = slow_bf16(speeds);
  if (!slow.empty()) say_once(cat(slow, "; set compute.precision = \"auto\""), log_warn);
  return asked;
}

std::string precision_name(const ModelRuntime& runtime) {
  return runtime.precision == MatmulPrecision::kBf16 ? "bf16" : "fp32";
}

std::string slow_bf16(const ProductSpeeds& speeds) {
  if (speeds.bf16 <= 0 || speeds.fp32 <= speeds.bf16) return "";
  const double factor = speeds.fp32 / speeds.bf16;
  return cat("bf16 products are ", fixed(factor, factor < 10 ? 1 : 0),
             " times slower than fp32 ones on this ",
             compute_device().is_cpu() ? "processor" : "device");
}

}  // namespace tiltflow
