#include "tiltflow/models/sit/sit.h"

#include "tiltflow/base/error.h"
#include "tiltflow/base/signals.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/nn/embedding.h"
#include "tiltflow/nn/fused.h"
#include "tiltflow/nn/init.h"
#include "tiltflow/nn/joined_linear.h"
#include "tiltflow/nn/recorded.h"
#include "tiltflow/tensor/activation_checkpoint.h"
#include "tiltflow/tensor/aten.h"
#include "tiltflow/tensor/device.h"

namespace tiltflow {
namespace {

constexpr std::int64_t kFrequencies = 256;  // width of the time features
constexpr std::int64_t kLargestRecorded =
    1 << 25;  // activations; above, a kernel runs longer than its launch takes

struct Block {
  Linear qkv, proj, fc1, fc2, modulation;
};

// Every tensor of a block that exists, in a fixed order.
std::vector<at::Tensor*> tensors_of(Block& block) {
  std::vector<at::Tensor*> out;
  for (Linear* layer : {&block.qkv, &block.proj, &block.fc1, &block.fc2, &block.modulation}) {
    for (at::Tensor* tensor :
         {&layer->weight, &layer->bias, &layer->adapter.a, &layer->adapter.b}) {
      if (tensor->defined()) out.push_back(tensor);
    }
  }
  return out;
}

at::Tensor layer_norm(const at::Tensor& x) { return at::layer_norm(x, {x.size(-1)}, {}, {}, 1e-6); }

// x (1 + scale) + shift, with one row of shift and scale per sample: [N, T, C], [N, C]
at::Tensor modulate(const at::Tensor& x, const at::Tensor& shift, const at::Tensor& scale) {
  return at::addcmul(shift.unsqueeze(1), x, scale.unsqueeze(1) + 1);
}

// The same in one pass per step (nn/fused). `joined`: the modulation when it is known already, else
// undefined.
at::Tensor run_fused(const Block& block, std::int64_t heads, const ModelRuntime& runtime,
                     const at::Tensor& x, const at::Tensor& silu_c, const at::Tensor& joined) {
  const at::ScalarType type =
      runtime.precision == MatmulPrecision::kBf16 ? at::kBFloat16 : at::kFloat;
  const auto linear = [&](const Linear& layer, const at::Tensor& in) {
    return fused::linear(layer, in, runtime.packing);
  };
  const std::vector<at::Tensor> m =
      (joined.defined() ? joined : linear(block.modulation, silu_c.to(type)).to(at::kFloat))
          .chunk(6, 1);  // [N, 6C] -> 6 x [N, C]
  const at::Tensor packed = linear(block.qkv, fused::modulated_norm(x, m[0], m[1], type));
  const auto [h, normed] =
      fused::gated_norm(x, m[2], linear(block.proj, fused::attention(packed, heads)), m[3], m[4]);
  return fused::gated_sum(h, m[5], linear(block.fc2, fused::gelu(linear(block.fc1, normed))));
}

at::Tensor run_block(const Block& block, std::int64_t heads, const ModelRuntime& runtime,
                     const at::Tensor& x, const at::Tensor& silu_c, const at::Tensor& joined = {}) {
  if (runtime.fused && fused::takes(x)) return run_fused(block, heads, runtime, x, silu_c, joined);
  const std::vector<at::Tensor> m =
      apply(block.modulation, silu_c, runtime.precision).chunk(6, 1);  // [N, 6C] -> 6 x [N, C]
  const at::Tensor attended =
      self_attention(block.qkv, block.proj, heads, modulate(layer_norm(x), m[0], m[1]),
                     runtime.precision, runtime.attention);
  const at::Tensor h = at::addcmul(x, m[2].unsqueeze(1), attended);
  const at::Tensor hidden =
      at::gelu(apply(block.fc1, modulate(layer_norm(h), m[3], m[4]), runtime.precision), "tanh");
  return at::addcmul(h, m[5].unsqueeze(1), apply(block.fc2, hidden, runtime.precision));
}

class Sit final : public VelocityModel {
 public:
  Sit(SitConfig config, ParameterSet parameters, AdapterSet adapters, ModelRuntime runtime)
      : config_(config),
        spec_{"sit", to_args(config)},
        parameters_(std::move(parameters)),
        runtime_(runtime) {
    runtime_.packing = runtime.packing && parameters_.bytes() <= kLargestPacked;
    const auto layer = [&](const std::string& name) {
      return make_linear(parameters_, adapters, name);
    };
    patch_weight_ = parameters_.at("x_embedder.proj.weight");
    time_in_ = layer("t_embedder.mlp.0");
    time_out_ = layer("t_embedder.mlp.2");
    for (std::int64_t i = 0; i < config_.depth; ++i) {
      const std::string prefix = cat("blocks.", i, ".");
      blocks_.push_back({layer(prefix + "attn.qkv"), layer(prefix + "attn.proj"),
                         layer(prefix + "mlp.fc1"), layer(prefix + "mlp.fc2"),
                         layer(prefix + "adaLN_modulation.1")});
    }
    final_ = layer("final_layer.linear");
    final_modulation_ = layer("final_layer.adaLN_modulation.1");
    const std::vector<std::string> known = linear_layers();
    for (const auto& [name, adapter] : adapters) {
      if (std::find(known.begin(), known.end(), name) == known.end()) {
        fail(ErrorKind::kBadFile,
             cat("adapter for '", name, "', which is no linear layer of this SiT"));
      }
    }
    if (patch_weight_.is_cuda() && !runtime_.activation_checkpointing) prepare_for_gpu(adapters);
  }

  const ModelSpec& spec() const override { return spec_; }
  const ParameterSet& parameters() const override { return parameters_; }
  std::vector<std::int64_t> sample_shape() const override {
    return {config_.in_channels, config_.input_size, config_.input_size};
  }
  std::int64_t classes() const override { return config_.num_classes; }
  bool is_buffer(const std::string& name) const override { return name == "pos_embed"; }

  std::vector<std::string> linear_layers() const override {
    std::vector<std::string> names{"t_embedder.mlp.0", "t_embedder.mlp.2"};
    for (std::int64_t i = 0; i < config_.depth; ++i) {
      for (const char* part :
           {"attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2", "adaLN_modulation.1"}) {
        names.push_back(cat("blocks.", i, ".", part));
      }
    }
    names.insert(names.end(), {"final_layer.linear", "final_layer.adaLN_modulation.1"});
    return names;
  }

  std::unique_ptr<VelocityModel> rebind(ParameterSet parameters,
                                        AdapterSet adapters) const override {
    return std::make_unique<Sit>(config_, std::move(parameters), std::move(adapters), runtime_);
  }

  at::Tensor velocity(const at::Tensor& x, const at::Tensor& t,
                      const Condition& condition) const override {
    if (x.dim() != 4 || x.size(1) != config_.in_channels || x.size(2) != config_.input_size ||
        x.size(3) != config_.input_size) {
      fail(ErrorKind::kFailure,
           cat("SiT expects [N, ", config_.in_channels, ", ", config_.input_size, ", ",
               config_.input_size, "], got ", shape_text(x.sizes())));
    }
    at::Tensor labels = condition.labels;
    at::Tensor times = t;  // a single row when all samples share both
    if (!labels.defined()) {
      if (!config_.null_class) {
        fail(ErrorKind::kConfig, "this model has no null class: labels are required",
             "choose a label");
      }
      labels = at::full({1}, config_.num_classes, at::kLong);
      if (t.dim() == 1 && t.stride(0) == 0) times = t.narrow(0, 0, 1);
    } else if (labels.size(0) != x.size(0)) {
      fail(ErrorKind::kFailure, cat("got ", labels.size(0), " labels for ", x.size(0), " samples"));
    } else if (const std::int64_t rows =
                   parameters_.at("y_embedder.embedding_table.weight").size(0);
               labels.device().is_cpu() && labels.numel() > 0 &&
               (labels.min().item<std::int64_t>() < 0 ||
                labels.max().item<std::int64_t>() >= rows)) {
      fail(ErrorKind::kFailure,
           cat("labels are 0 to ", rows - 1, ", got ", labels.min().item<std::int64_t>(), " to ",
               labels.max().item<std::int64_t>()));  // a GPU would not survive them
    }
    const std::vector<at::Tensor> inputs{on_device_of(patch_weight_, x),
                                         on_device_of(patch_weight_, times.to(x.scalar_type())),
                                         on_device_of(patch_weight_, labels)};
    return on_device_of(x, recorded_ ? (*recorded_)(inputs) : network(inputs));
  }

 private:
  // Everything on the device of the weights: states [N, C, S, S], times [N or 1], labels [N or 1]
  // -> [N, C, S, S].
  at::Tensor network(const std::vector<at::Tensor>& inputs) const {
    const at::Tensor time =
        apply(time_out_,
              at::silu(apply(time_in_, timestep_features(inputs[1], kFrequencies),
                             MatmulPrecision::kFull)),
              MatmulPrecision::kFull);
    const at::Tensor silu_c =
        at::silu(time + at::embedding(parameters_.at("y_embedder.embedding_table.weight"),
                                      inputs[2]));  // [N, C]
    at::Tensor h = linear_in(runtime_.precision, patchify(inputs[0]), patch_weight_.flatten(1),
                             parameters_.at("x_embedder.proj.bias")) +
                   parameters_.at("pos_embed");
    std::vector<at::Tensor> joined(blocks_.size());
    if (modulations_ && fused::takes(h)) {
      joined = (*modulations_)(silu_c.to(at::kBFloat16)).chunk(config_.depth, 1);
    }
    for (std::size_t i = 0; i < blocks_.size(); ++i) {
      check_stop();
      h = runtime_.activation_checkpointing
              ? checkpointed(blocks_[i], h, silu_c)
              : run_block(blocks_[i], config_.num_heads, runtime_, h, silu_c, joined[i]);
    }
    const std::vector<at::Tensor> m =
        apply(final_modulation_, silu_c, runtime_.precision).chunk(2, 1);
    return unpatchify(apply(final_, modulate(layer_norm(h), m[0], m[1]), runtime_.precision));
  }

  void prepare_for_gpu(const AdapterSet& adapters) {
    const bool half = runtime_.fused && runtime_.precision == MatmulPrecision::kBf16;
    std::vector<Linear> modulations;
    for (const Block& block : blocks_) modulations.push_back(block.modulation);
    if (half && JoinedLinear::takes(modulations)) {
      modulations_ = std::make_unique<JoinedLinear>(std::move(modulations));
    }
    if (!runtime_.graphs) return;
    std::vector<at::Tensor> weights = parameters_.tensors();
    for (const auto& [name, adapter] : adapters) {
      weights.insert(weights.end(), {adapter.a, adapter.b});
    }
    const auto refresh = [this, half] {
      if (!half) return;
      if (modulations_) modulations_->refresh();
      for (const Block& block : blocks_) {
        for (const Linear* layer :
             {&block.qkv, &block.proj, &block.fc1, &block.fc2, &block.modulation}) {
          if (modulations_ && layer == &block.modulation) continue;
          layer->copies->half_weight(layer->weight);
          if (layer->bias.defined()) layer->copies->half_bias(layer->bias);
        }
      }
    };
    recorded_ = std::make_unique<RecordedNetwork>(
        [this](const std::vector<at::Tensor>& inputs) { return network(inputs); },
        std::move(weights), refresh,
        std::max<std::int64_t>(1, kLargestRecorded / (config_.tokens() * config_.hidden_size)));
  }

  // [N, C, S, S] -> [N, T, C p p], tokens row by row
  at::Tensor patchify(const at::Tensor& x) const {
    const std::int64_t p = config_.patch_size;
    const std::int64_t side = config_.input_size / p;
    return x.reshape({x.size(0), config_.in_channels, side, p, side, p})
        .permute({0, 2, 4, 1, 3, 5})
        .reshape({x.size(0), side * side, config_.in_channels * p * p});
  }

  // [N, T, p p C_out] -> [N, C, S, S]; with learn_sigma the second half of the channels is dropped
  at::Tensor unpatchify(const at::Tensor& tokens) const {
    const std::int64_t p = config_.patch_size;
    const std::int64_t side = config_.input_size / p;
    const std::int64_t n = tokens.size(0);
    at::Tensor image = tokens.reshape({n, side, side, p, p, config_.out_channels()});
    if (config_.learn_sigma) image = image.narrow(5, 0, config_.in_channels);
    return image.permute({0, 5, 1, 3, 2, 4})
        .reshape({n, config_.in_channels, config_.input_size, config_.input_size});
  }

  at::Tensor checkpointed(const Block& block, const at::Tensor& x, const at::Tensor& silu_c) const {
    Block copy = block;
    std::vector<at::Tensor> inputs{x, silu_c};
    for (at::Tensor* tensor : tensors_of(copy)) inputs.push_back(*tensor);
    const auto run = [copy, heads = config_.num_heads,
                      runtime = runtime_](const std::vector<at::Tensor>& in) {
      Block local = copy;
      std::size_t next = 2;
      for (at::Tensor* tensor : tensors_of(local)) *tensor = in[next++];
      return run_block(local, heads, runtime, in[0], in[1]);
    };
    return checkpoint(run, inputs);
  }

  SitConfig config_;
  ModelSpec spec_;
  ParameterSet parameters_;
  ModelRuntime runtime_;
  at::Tensor patch_weight_;
  Linear time_in_, time_out_, final_, final_modulation_;
  std::vector<Block> blocks_;
  std::unique_ptr<JoinedLinear> modulations_;  // on CUDA in bf16: of all blocks
  std::unique_ptr<RecordedNetwork> recorded_;  // on CUDA
};

}  // namespace

namespace {

// Every tensor of the state dict in the official order. `key` names its random stream.
enum class Fill { kZeros, kXavier, kNormal, kPositions };
struct Slot {
  std::string name, key;
  std::vector<std::int64_t> shape;
  Fill fill;
};

std::vector<Slot> layout(const SitConfig& c) {
  validate(c);
  std::vector<Slot> out;
  const auto linear = [&](const std::string& name, std::int64_t rows, std::int64_t columns,
                          Fill fill = Fill::kXavier) {
    out.push_back({name + ".weight", name, {rows, columns}, fill});
    out.push_back({name + ".bias", name, {rows}, Fill::kZeros});
  };
  const std::int64_t width = c.hidden_size;
  const std::int64_t mlp = static_cast<std::int64_t>(static_cast<double>(width) * c.mlp_ratio);
  const std::int64_t tokens = (c.input_size / c.patch_size) * (c.input_size / c.patch_size);
  out.push_back({"pos_embed", "", {1, tokens, width}, Fill::kPositions});
  out.push_back({"x_embedder.proj.weight",
                 "x_embedder.proj",
                 {width, c.in_channels, c.patch_size, c.patch_size},
                 Fill::kXavier});
  out.push_back({"x_embedder.proj.bias", "", {width}, Fill::kZeros});
  linear("t_embedder.mlp.0", width, kFrequencies, Fill::kNormal);
  linear("t_embedder.mlp.2", width, width, Fill::kNormal);
  out.push_back({"y_embedder.embedding_table.weight",
                 "y_embedder",
                 {c.num_classes + (c.null_class ? 1 : 0), width},
                 Fill::kNormal});
  for (std::int64_t i = 0; i < c.depth; ++i) {
    const std::string prefix = cat("blocks.", i, ".");
    linear(prefix + "attn.qkv", 3 * width, width);
    linear(prefix + "attn.proj", width, width);
    linear(prefix + "mlp.fc1", mlp, width);
    linear(prefix + "mlp.fc2", width, mlp);
    linear(prefix + "adaLN_modulation.1", 6 * width, width, Fill::kZeros);
  }
  linear("final_layer.linear", c.patch_size * c.patch_size * c.out_channels(), width, Fill::kZeros);
  linear("final_layer.adaLN_modulation.1", 2 * width, width, Fill::kZeros);
  return out;
}

}  // namespace

ParameterSet sit_shapes(const SitConfig& config) {
  ParameterSet out;
  for (const Slot& slot : layout(config)) {
    out.add(slot.name, at::empty(slot.shape, at::TensorOptions().device(at::kMeta)));
  }
  return out;
}

ParameterSet init_sit(const SitConfig& config, const RandomStreams& streams) {
  ParameterSet out;
  for (const Slot& slot : layout(config)) {
    switch (slot.fill) {
      case Fill::kZeros:
        out.add(slot.name, at::zeros(slot.shape));
        break;
      case Fill::kXavier:
        out.add(slot.name, xavier_uniform(streams, slot.key, slot.shape));
        break;
      case Fill::kNormal:
        out.add(slot.name, normal_init(streams, slot.key, slot.shape, 0.02));
        break;
      case Fill::kPositions:
        out.add(slot.name,
                sincos_positions(config.input_size / config.patch_size, config.hidden_size));
        break;
    }
  }
  return out;
}

std::unique_ptr<VelocityModel> make_sit(const SitConfig& config, ParameterSet parameters,
                                        AdapterSet adapters, ModelRuntime runtime) {
  validate(config);
  return std::make_unique<Sit>(config, std::move(parameters), std::move(adapters), runtime);
}

}  // namespace tiltflow
