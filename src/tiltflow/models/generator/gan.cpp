#include "tiltflow/models/generator/gan.h"

#include <cmath>

#include "tiltflow/base/error.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/io/tensor_file.h"
#include "tiltflow/models/model_file.h"
#include "tiltflow/nn/convolution.h"
#include "tiltflow/nn/init.h"
#include "tiltflow/tensor/aten.h"
#include "tiltflow/tensor/device.h"

namespace tiltflow {
namespace {

constexpr double kBatchNormEps = 1e-5;
constexpr double kBatchNormMomentum = 0.1;

// The layers of the generator's `net` and of the discriminator's `features`, by their index in the
// official containers.
std::string up(std::int64_t i) { return cat("net.", 3 * i); }
std::string up_norm(std::int64_t i) { return cat("net.", 3 * i + 1); }
std::string last_conv(const GanConfig& c) { return cat("net.", 3 * c.upsamplings); }
std::string down(std::int64_t i) { return cat("features.", 2 * i); }
std::string feature_layer(const GanConfig& c) { return cat("features.", 2 * c.upsamplings + 1); }

void validate(const GanConfig& c) {
  for (const std::int64_t v : {c.z_dim, c.num_classes, c.embed_dim, c.base_channels, c.image_size,
                               c.channels, c.upsamplings, c.d_base_channels, c.feat_dim}) {
    if (v < 1 || v > (1 << 20)) {
      fail(ErrorKind::kConfig, cat("gan: an argument is ", v, ", expected a positive integer"));
    }
  }
  if (c.upsamplings > 8 || c.start_size() < 1 ||
      (c.start_size() << c.upsamplings) != c.image_size) {
    fail(ErrorKind::kConfig,
         cat("gan: image_size ", c.image_size, " is no multiple of 2^", c.upsamplings));
  }
  if (c.base_channels > 4096 || c.d_base_channels > 4096) {
    fail(ErrorKind::kConfig, "gan: more than 4096 base channels");
  }
}

class GanGenerator final : public Generator {
 public:
  GanGenerator(GanConfig config, ParameterSet parameters, MatmulPrecision precision)
      : config_(config),
        spec_{"gan", to_args(config)},
        parameters_(std::move(parameters)),
        precision_(precision) {}

  const ModelSpec& spec() const override { return spec_; }
  const ParameterSet& parameters() const override { return parameters_; }
  std::vector<std::int64_t> noise_shape() const override { return {config_.z_dim}; }
  std::vector<std::int64_t> sample_shape() const override {
    return {config_.channels, config_.image_size, config_.image_size};
  }
  std::int64_t classes() const override { return config_.num_classes; }
  bool is_buffer(const std::string& name) const override {
    return name.find(".running_") != std::string::npos || ends_with(name, ".num_batches_tracked");
  }
  std::unique_ptr<Generator> rebind(ParameterSet parameters) const override {
    return std::make_unique<GanGenerator>(config_, std::move(parameters), precision_);
  }

  at::Tensor generate(const at::Tensor& z, const at::Tensor& labels) const override {
    return run(z, labels, nullptr);
  }
  TrainingOutput generate_in_training(const at::Tensor& z,
                                      const at::Tensor& labels) const override {
    TrainingOutput out;
    out.samples = run(z, labels, &out.buffers);
    return out;
  }

 private:
  const at::Tensor& p(const std::string& name) const { return parameters_.at(name); }

  // With `updated`, statistics of the batch; what the stored ones become is added to it.
  at::Tensor normalize(const std::string& name, const at::Tensor& x, ParameterSet* updated) const {
    if (!updated) {
      return at::batch_norm(x, p(name + ".weight"), p(name + ".bias"), p(name + ".running_mean"),
                            p(name + ".running_var"), false, kBatchNormMomentum, kBatchNormEps,
                            false);
    }
    const at::Tensor mean = p(name + ".running_mean").clone();
    const at::Tensor variance = p(name + ".running_var").clone();
    const at::Tensor out = at::batch_norm(x, p(name + ".weight"), p(name + ".bias"), mean, variance,
                                          true, kBatchNormMomentum, kBatchNormEps, false);
    updated->add(name + ".running_mean", mean);
    updated->add(name + ".running_var", variance);
    updated->add(name + ".num_batches_tracked", p(name + ".num_batches_tracked") + 1);
    return out;
  }
  at::Tensor activate(const at::Tensor& x) const {
    return config_.activation == "relu" ? at::relu(x) : at::leaky_relu(x, 0.2);
  }

  at::Tensor run(const at::Tensor& z, const at::Tensor& labels, ParameterSet* updated) const {
    if (z.dim() != 2 || z.size(1) != config_.z_dim) {
      fail(ErrorKind::kFailure,
           cat("this generator takes noise [N, ", config_.z_dim, "], got ", shape_text(z.sizes())));
    }
    if (!labels.defined()) {
      fail(ErrorKind::kConfig, "this generator is conditional: labels are required");
    }
    const std::int64_t side = config_.start_size();
    const at::Tensor& table = p("label_emb.weight");
    at::Tensor h = linear_in(
        precision_,
        at::cat({on_device_of(table, z), at::embedding(table, on_device_of(table, labels))}, 1),
        p("fc.0.weight"), p("fc.0.bias"));
    h = activate(normalize("fc.1", h, updated))
            .view({z.size(0), config_.start_channels(), side, side});  // [N, c 2^u, s, s]
    for (std::int64_t i = 0; i < config_.upsamplings; ++i) {
      h = conv_transpose2d_in(precision_, h, p(up(i) + ".weight"), p(up(i) + ".bias"), 2,
                              1);  // halves the channels, doubles the side
      h = activate(normalize(up_norm(i), h, updated));
    }
    return on_device_of(z, at::tanh(conv2d_in(precision_, h, p(last_conv(config_) + ".weight"),
                                              p(last_conv(config_) + ".bias"), 1, 1))
                               .contiguous());
  }

  GanConfig config_;
  ModelSpec spec_;
  ParameterSet parameters_;
  MatmulPrecision precision_;
};

void add_layer(ParameterSet& out, const RandomStreams& streams, const std::string& name,
               std::vector<std::int64_t> shape, std::int64_t fan_in, std::int64_t bias) {
  out.add(name + ".weight", fan_in_uniform(streams, name + ".weight", shape, fan_in));
  out.add(name + ".bias", fan_in_uniform(streams, name + ".bias", {bias}, fan_in));
}

void add_norm(ParameterSet& out, const std::string& name, std::int64_t width) {
  out.add(name + ".weight", at::ones({width}));
  out.add(name + ".bias", at::zeros({width}));
  out.add(name + ".running_mean", at::zeros({width}));
  out.add(name + ".running_var", at::ones({width}));
  out.add(name + ".num_batches_tracked", at::zeros({}, at::kLong));
}

std::int64_t size_of(const ParameterSet& tensors, const std::string& name, std::int64_t dim) {
  if (!tensors.contains(name) || tensors.at(name).dim() <= dim) {
    fail(ErrorKind::kBadFile,
         cat("no GAN: tensor '", name, "' is missing or has too few dimensions"));
  }
  return tensors.at(name).size(dim);
}

}  // namespace

GanConfig gan_config_from_args(const std::map<std::string, std::string>& args, GanConfig c) {
  const std::map<std::string, std::int64_t GanConfig::*> integers{
      {"z_dim", &GanConfig::z_dim},
      {"num_classes", &GanConfig::num_classes},
      {"embed_dim", &GanConfig::embed_dim},
      {"base_channels", &GanConfig::base_channels},
      {"image_size", &GanConfig::image_size},
      {"channels", &GanConfig::channels},
      {"upsamplings", &GanConfig::upsamplings},
      {"d_base_channels", &GanConfig::d_base_channels},
      {"feat_dim", &GanConfig::feat_dim}};
  if (const auto size = args.find("size"); size != args.end()) {
    if (size->second == "cifar10") {
      c.z_dim = 128;
      c.embed_dim = 64;
      c.image_size = 32;
      c.channels = 3;
      c.upsamplings = 3;
      c.activation = "relu";
    } else if (size->second != "mnist") {
      fail(ErrorKind::kConfig, cat("gan: size '", size->second, "' is unknown"),
           "use mnist or cifar10");
    }
  }
  for (const auto& [key, text] : args) {
    if (key == "size") continue;
    if (key == "activation") {
      if (text != "relu" && text != "leaky_relu") {
        fail(ErrorKind::kConfig, cat("gan: activation '", text, "' is unknown"),
             "use relu or leaky_relu");
      }
      c.activation = text;
    } else if (key == "spectral_norm") {
      if (text != "true" && text != "false") {
        fail(ErrorKind::kConfig, cat("gan: spectral_norm '", text, "': expected true or false"));
      }
      c.spectral_norm = text == "true";
    } else if (const auto found = integers.find(key); found != integers.end()) {
      char* end = nullptr;
      c.*(found->second) = std::strtoll(text.c_str(), &end, 10);
      if (text.empty() || *end) {
        fail(ErrorKind::kConfig, cat("gan: ", key, " = '", text, "': expected a whole number"));
      }
    } else {
      std::vector<std::string> known{"size", "activation", "spectral_norm"};
      for (const auto& [name, member] : integers) known.push_back(name);
      fail(ErrorKind::kConfig, cat("a gan has no argument '", key, "'", did_you_mean(key, known)),
           "known: " + join(known, ", "));
    }
  }
  validate(c);
  return c;
}

std::map<std::string, std::string> to_args(const GanConfig& c) {
  return {{"z_dim", cat(c.z_dim)},
          {"num_classes", cat(c.num_classes)},
          {"embed_dim", cat(c.embed_dim)},
          {"base_channels", cat(c.base_channels)},
          {"image_size", cat(c.image_size)},
          {"channels", cat(c.channels)},
          {"upsamplings", cat(c.upsamplings)},
          {"activation", c.activation},
          {"d_base_channels", cat(c.d_base_channels)},
          {"feat_dim", cat(c.feat_dim)},
          {"spectral_norm", c.spectral_norm ? "true" : "false"}};
}

GanConfig infer_gan_config(const ParameterSet& t, const std::map<std::string, std::string>& args) {
  GanConfig c;
  c.num_classes = size_of(t, "label_emb.weight", 0);
  c.embed_dim = size_of(t, "label_emb.weight", 1);
  c.z_dim = size_of(t, "fc.0.weight", 1) - c.embed_dim;
  c.upsamplings = 0;
  while (c.upsamplings < 8 && t.contains(up_norm(c.upsamplings) + ".running_mean")) ++c.upsamplings;
  if (c.upsamplings == 0) {
    fail(ErrorKind::kBadFile, "no GAN: no transposed convolution (net.0, net.1) found");
  }
  c.base_channels = size_of(t, up(c.upsamplings - 1) + ".weight", 1);
  c.channels = size_of(t, last_conv(c) + ".weight", 0);
  const std::int64_t pixels =
      size_of(t, "fc.0.weight", 0) / std::max<std::int64_t>(1, c.start_channels());
  c.image_size = static_cast<std::int64_t>(std::llround(std::sqrt(static_cast<double>(pixels))))
                 << c.upsamplings;
  c.activation = c.upsamplings == 3 ? "relu" : "leaky_relu";
  return gan_config_from_args(args, c);
}

ParameterSet init_gan_generator(const GanConfig& c, const RandomStreams& streams) {
  validate(c);
  ParameterSet out;
  const std::int64_t width = c.start_channels() * c.start_size() * c.start_size();
  out.add("label_emb.weight",
          normal_init(streams, "label_emb.weight", {c.num_classes, c.embed_dim}, 1));
  add_layer(out, streams, "fc.0", {width, c.z_dim + c.embed_dim}, c.z_dim + c.embed_dim, width);
  add_norm(out, "fc.1", width);
  for (std::int64_t i = 0; i < c.upsamplings; ++i) {
    const std::int64_t in = c.start_channels() >> i;
    const std::int64_t next = in / 2;
    add_layer(out, streams, up(i), {in, next, 4, 4}, next * 16, next);
    add_norm(out, up_norm(i), next);
  }
  add_layer(out, streams, last_conv(c), {c.channels, c.base_channels, 3, 3}, c.base_channels * 9,
            c.channels);
  return out;
}

std::unique_ptr<Generator> make_gan_generator(const GanConfig& config, ParameterSet parameters,
                                              MatmulPrecision precision) {
  validate(config);
  return std::make_unique<GanGenerator>(config, std::move(parameters), precision);
}

Discriminator::Discriminator(GanConfig config, ParameterSet parameters, MatmulPrecision precision)
    : config_(std::move(config)), parameters_(std::move(parameters)), precision_(precision) {
  validate(config_);
}

bool Discriminator::is_buffer(const std::string& name) const {
  return ends_with(name, ".weight_u");
}

// W / sigma(W), sigma = u^T W v with v = W^T u / |W^T u|; u is kept between steps (Miyato et al.
// 2018).
at::Tensor Discriminator::weight(const std::string& name) const {
  const at::Tensor& w = parameters_.at(name + ".weight");
  if (!config_.spectral_norm) return w;
  const at::Tensor& u = parameters_.at(name + ".weight_u");
  const at::Tensor matrix = w.flatten(1);
  const at::Tensor v = at::mv(matrix.detach().t(), u);
  const at::Tensor unit = v / v.norm().clamp_min(1e-12);
  return w / at::dot(u, at::mv(matrix, unit));
}

void Discriminator::update_spectral_norm() const {
  if (!config_.spectral_norm) return;
  const at::NoGradGuard no_grad;
  for (const auto& [name, u] : parameters_) {
    if (!is_buffer(name)) continue;
    const at::Tensor matrix = parameters_.at(name.substr(0, name.size() - 2)).detach().flatten(1);
    const at::Tensor v = at::mv(matrix.t(), u);
    const at::Tensor next = at::mv(matrix, v / v.norm().clamp_min(1e-12));
    at::Tensor kept = u;
    kept.copy_(next / next.norm().clamp_min(1e-12));
  }
}

at::Tensor Discriminator::score(const at::Tensor& images, const at::Tensor& labels) const {
  const at::Tensor& table = parameters_.at("label_emb.weight");
  at::Tensor h = on_device_of(table, images);
  for (std::int64_t i = 0; i < config_.upsamplings; ++i) {
    h = at::leaky_relu(
        conv2d_in(precision_, h, weight(down(i)), parameters_.at(down(i) + ".bias"), 2, 1), 0.2);
  }
  const std::string last = feature_layer(config_);
  const at::Tensor feature = at::leaky_relu(linear_in(precision_, h.contiguous().flatten(1),
                                                      weight(last), parameters_.at(last + ".bias")),
                                            0.2);  // [N, feat_dim]
  const at::Tensor score = at::linear(feature, weight("fc"), parameters_.at("fc.bias")).squeeze(1);
  return on_device_of(images,
                      score + (feature * at::embedding(table, on_device_of(table, labels))).sum(1));
}

ParameterSet init_discriminator(const GanConfig& c, const RandomStreams& streams) {
  validate(c);
  ParameterSet out;
  const auto layer = [&](const std::string& name, const std::vector<std::int64_t>& shape,
                         std::int64_t fan_in) {
    out.add(name + ".weight",
            fan_in_uniform(streams, cat("discriminator.", name, ".weight"), shape, fan_in));
    out.add(name + ".bias",
            fan_in_uniform(streams, cat("discriminator.", name, ".bias"), {shape[0]}, fan_in));
    if (c.spectral_norm) {
      const at::Tensor u =
          normal_init(streams, cat("discriminator.", name, ".weight_u"), {shape[0]}, 1);
      out.add(name + ".weight_u", u / u.norm());
    }
  };
  for (std::int64_t i = 0; i < c.upsamplings; ++i) {
    const std::int64_t in = i == 0 ? c.channels : c.d_base_channels << (i - 1);
    layer(down(i), {c.d_base_channels << i, in, 4, 4}, in * 16);
  }
  const std::int64_t flat =
      (c.d_base_channels << (c.upsamplings - 1)) * c.start_size() * c.start_size();
  layer(feature_layer(c), {c.feat_dim, flat}, flat);
  layer("fc", {1, c.feat_dim}, c.feat_dim);
  out.add("label_emb.weight",
          normal_init(streams, "discriminator.label_emb.weight", {c.num_classes, c.feat_dim}, 1));
  return out;
}

Discriminator load_discriminator(const std::filesystem::path& path, const std::string& section) {
  const TensorFile file = read_tensors(path, section);
  const ParameterSet& t = file.tensors;
  GanConfig c;
  c.upsamplings = 0;
  while (c.upsamplings < 8 && t.contains(down(c.upsamplings) + ".weight") &&
         t.at(down(c.upsamplings) + ".weight").dim() == 4) {
    ++c.upsamplings;
  }
  if (c.upsamplings == 0) {
    fail(ErrorKind::kBadFile,
         cat(path.string(), ": no discriminator (features.0.weight is missing)"));
  }
  c.channels = size_of(t, down(0) + ".weight", 1);
  c.d_base_channels = size_of(t, down(0) + ".weight", 0);
  c.num_classes = size_of(t, "label_emb.weight", 0);
  c.feat_dim = size_of(t, "label_emb.weight", 1);
  c.spectral_norm = t.contains("fc.weight_u");
  const std::int64_t pixels = size_of(t, feature_layer(c) + ".weight", 1) /
                              std::max<std::int64_t>(1, c.d_base_channels << (c.upsamplings - 1));
  c.image_size = static_cast<std::int64_t>(std::llround(std::sqrt(static_cast<double>(pixels))))
                 << c.upsamplings;
  require_fit(init_discriminator(c, RandomStreams(0)), t, path.string());
  return Discriminator(c, t);
}

HingeLosses hinge_losses(const at::Tensor& real, const at::Tensor& fake) {
  return {at::relu(1 - real).mean() + at::relu(1 + fake).mean(), -fake.mean()};
}

}  // namespace tiltflow
