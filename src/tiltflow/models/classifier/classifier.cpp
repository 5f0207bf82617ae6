#include "tiltflow/models/classifier/classifier.h"

#include "tiltflow/base/error.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/nn/init.h"
#include "tiltflow/tensor/aten.h"
#include "tiltflow/tensor/device.h"

namespace tiltflow {

Classifier::Classifier(ClassifierConfig config, ParameterSet parameters)
    : config_(config), parameters_(std::move(parameters)) {
  if (config_.input_size % 4) {
    fail(ErrorKind::kConfig,
         cat("classifier: input_size ", config_.input_size, " is not a multiple of 4"));
  }
  require_fit(init_classifier(config_, RandomStreams(0)), parameters_, "classifier checkpoint");
}

at::Tensor Classifier::hidden(const at::Tensor& images) const {
  if (images.dim() != 4 || images.size(1) != config_.in_channels ||
      images.size(2) != config_.input_size || images.size(3) != config_.input_size) {
    fail(ErrorKind::kFailure,
         cat("the classifier expects [N, ", config_.in_channels, ", ", config_.input_size, ", ",
             config_.input_size, "], got ", shape_text(images.sizes())));
  }
  const auto conv = [&](const at::Tensor& x, const char* name) {
    return at::silu(at::conv2d(x, parameters_.at(cat(name, ".weight")),
                               parameters_.at(cat(name, ".bias")), 1, 1));
  };
  at::Tensor h =
      at::avg_pool2d(conv(on_device_of(parameters_.at("conv1.weight"), images) * 2 - 1, "conv1"),
                     2);                    // [N, w, S/2, S/2]
  h = at::avg_pool2d(conv(h, "conv2"), 2);  // [N, 2w, S/4, S/4]
  h = conv(h, "conv3").flatten(1);          // [N, 2w S/4 S/4]
  return at::silu(at::linear(h, parameters_.at("fc1.weight"), parameters_.at("fc1.bias")));
}

at::Tensor Classifier::features(const at::Tensor& images) const {
  return on_device_of(images, hidden(images));
}

at::Tensor Classifier::logits(const at::Tensor& images) const {
  return on_device_of(
      images, at::linear(hidden(images), parameters_.at("fc2.weight"), parameters_.at("fc2.bias")));
}

ClassifierConfig classifier_config_from_args(const std::map<std::string, std::string>& args) {
  ClassifierConfig config;
  for (const auto& [key, text] : args) {
    char* end = nullptr;
    const long long value = std::strtoll(text.c_str(), &end, 10);
    if (text.empty() || *end || value < 1 || value > (1 << 20)) {
      fail(ErrorKind::kConfig,
           cat("classifier argument ", key, " = '", text, "': expected a positive integer"));
    }
    if (key == "input_size") {
      config.input_size = value;
    } else if (key == "in_channels") {
      config.in_channels = value;
    } else if (key == "width") {
      config.width = value;
    } else if (key == "features") {
      config.features = value;
    } else if (key == "num_classes") {
      config.num_classes = value;
    } else {
      fail(ErrorKind::kConfig, cat("the classifier has no argument '", key, "'",
                                   did_you_mean(key, {"input_size", "in_channels", "width",
                                                      "features", "num_classes"})));
    }
  }
  return config;
}

std::map<std::string, std::string> to_args(const ClassifierConfig& c) {
  return {{"input_size", cat(c.input_size)},
          {"in_channels", cat(c.in_channels)},
          {"width", cat(c.width)},
          {"features", cat(c.features)},
          {"num_classes", cat(c.num_classes)}};
}

ParameterSet init_classifier(const ClassifierConfig& c, const RandomStreams& streams) {
  ParameterSet out;
  const auto add = [&](const std::string& name, std::vector<std::int64_t> shape) {
    std::int64_t fan_in = 1;
    for (std::size_t i = 1; i < shape.size(); ++i) fan_in *= shape[i];
    out.add(name + ".weight", fan_in_uniform(streams, name, shape, fan_in));
    out.add(name + ".bias", at::zeros({shape[0]}));
  };
  add("conv1", {c.width, c.in_channels, 3, 3});
  add("conv2", {2 * c.width, c.width, 3, 3});
  add("conv3", {2 * c.width, 2 * c.width, 3, 3});
  add("fc1", {c.features, 2 * c.width * (c.input_size / 4) * (c.input_size / 4)});
  add("fc2", {c.num_classes, c.features});
  return out;
}

}  // namespace tiltflow
