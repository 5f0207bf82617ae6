// AutoencoderKL: residual blocks with group normalisation, one attention block in the middle.
#include <cmath>

#include "tiltflow/base/error.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/models/autoencoder/layers.h"
#include "tiltflow/tensor/aten.h"

namespace tiltflow {
namespace {

constexpr double kGroupNormEpsilon = 1e-6;

class AutoencoderKl final : public Autoencoder {
 public:
  AutoencoderKl(KlLayout layout, ParameterSet parameters, AutoencoderRuntime runtime)
      : Autoencoder(runtime), layout_(std::move(layout)), p_(std::move(parameters)) {}
  std::int64_t latent_channels() const override { return layout_.latent; }
  std::int64_t downscale() const override { return std::int64_t{1} << (layout_.widths.size() - 1); }
  const ParameterSet& parameters() const override { return p_; }
  std::string kind() const override { return "kl"; }

  Moments encode_batch(const at::Tensor& images) const override {
    const LayerContext c{p_, runtime_};
    at::Tensor h = convolve(c, "encoder.conv_in", images);
    for (std::size_t i = 0; i < layout_.widths.size(); ++i) {
      const std::string stage = cat("encoder.down_blocks.", i);
      for (std::int64_t j = 0; j < layout_.blocks; ++j) {
        h = residual(c, cat(stage, ".resnets.", j), h);
      }
      // Padded on the right and below only, as the original
      if (i + 1 < layout_.widths.size()) {
        h = convolve(c, stage + ".downsamplers.0.conv", at::constant_pad_nd(h, {0, 1, 0, 1}), 2,
                     /*padded=*/true);
      }
    }
    h = finish(c, "encoder", middle(c, "encoder", h));
    if (layout_.quant) h = convolve(c, "quant_conv", h);
    const std::vector<at::Tensor> halves = h.chunk(2, 1);
    return {halves[0], halves[1].clamp(-30, 20)};
  }

 protected:
  at::Tensor decode_batch(const at::Tensor& latent, bool check) const override {
    const LayerContext c{p_, runtime_, check};
    at::Tensor h = layout_.post_quant ? convolve(c, "post_quant_conv", latent) : latent;
    h = middle(c, "decoder", convolve(c, "decoder.conv_in", h));
    for (std::size_t i = 0; i < layout_.widths.size(); ++i) {
      const std::string stage = cat("decoder.up_blocks.", i);
      for (std::int64_t j = 0; j <= layout_.blocks; ++j) {
        h = residual(c, cat(stage, ".resnets.", j), h);
      }
      if (i + 1 == layout_.widths.size()) break;
      h = block(c, h, [c, stage](const at::Tensor& x) {
        return convolve(c, stage + ".upsamplers.0.conv",
                        at::upsample_nearest2d(x, {2 * x.size(2), 2 * x.size(3)}));
      });
    }
    return finish(c, "decoder", h);
  }

 private:
  at::Tensor norm(const LayerContext& c, const std::string& name, const at::Tensor& x) const {
    return at::group_norm(x, layout_.groups, c.p.at(name + ".weight"), c.p.at(name + ".bias"),
                          kGroupNormEpsilon);
  }
  at::Tensor residual(const LayerContext& c, const std::string& name,
                      const at::Tensor& input) const {
    const at::Tensor y = block(c, input, [this, c, name](const at::Tensor& x) {
      at::Tensor h = convolve(c, name + ".conv1", at::silu(norm(c, name + ".norm1", x)));
      h = convolve(c, name + ".conv2", at::silu(norm(c, name + ".norm2", h)));
      return (c.p.contains(name + ".conv_shortcut.weight") ? convolve(c, name + ".conv_shortcut", x)
                                                           : x) +
             h;
    });
    c.inspect(y, name);
    return y;
  }
  // One head over all positions.
  at::Tensor attention(const LayerContext& c, const std::string& name,
                       const at::Tensor& input) const {
    const at::Tensor y = block(c, input, [this, c, name](const at::Tensor& x) {
      const std::int64_t n = x.size(0);
      const std::int64_t channels = x.size(1);
      const std::int64_t height = x.size(2);
      const std::int64_t width = x.size(3);
      const at::Tensor h =
          norm(c, name + ".group_norm", x).flatten(2).transpose(1, 2);  // [N, HW, C]
      const auto linear = [&](const char* part, const at::Tensor& v) {
        return linear_in(runtime_.precision, v, c.p.at(cat(name, ".", part, ".weight")),
                         c.p.at(cat(name, ".", part, ".bias")));
      };
      const at::Tensor o = at::scaled_dot_product_attention(linear("to_q", h).unsqueeze(1),
                                                            linear("to_k", h).unsqueeze(1),
                                                            linear("to_v", h).unsqueeze(1))
                               .squeeze(1);
      return x + linear("to_out.0", o).transpose(1, 2).reshape({n, channels, height, width});
    });
    c.inspect(y, name);
    return y;
  }
  at::Tensor middle(const LayerContext& c, const std::string& half, const at::Tensor& x) const {
    at::Tensor h = residual(c, half + ".mid_block.resnets.0", x);
    if (layout_.mid_attention) h = attention(c, half + ".mid_block.attentions.0", h);
    return residual(c, half + ".mid_block.resnets.1", h);
  }
  at::Tensor finish(const LayerContext& c, const std::string& half, const at::Tensor& x) const {
    const at::Tensor y =
        convolve(c, half + ".conv_out", at::silu(norm(c, half + ".conv_norm_out", x)));
    c.inspect(y, half + ".conv_out");
    return y;
  }

  KlLayout layout_;
  ParameterSet p_;
};

// Names and shapes of the tensors that a layout needs, without memory of their own.
struct KlShapes {
  const KlLayout& layout;
  ParameterSet out{};

  static at::Tensor meta(at::IntArrayRef shape) { return at::empty({1}).expand(shape); }

  void conv(const std::string& name, std::int64_t to, std::int64_t from, std::int64_t side) {
    out.add(name + ".weight", meta({to, from, side, side}));
    out.add(name + ".bias", meta({to}));
  }
  void norm(const std::string& name, std::int64_t width) {
    out.add(name + ".weight", meta({width}));
    out.add(name + ".bias", meta({width}));
  }
  void residual(const std::string& name, std::int64_t from, std::int64_t to) {
    norm(name + ".norm1", from);
    conv(name + ".conv1", to, from, 3);
    norm(name + ".norm2", to);
    conv(name + ".conv2", to, to, 3);
    if (from != to) conv(name + ".conv_shortcut", to, from, 1);
  }
  void middle(const std::string& half) {
    const std::int64_t width = layout.widths.back();
    residual(half + ".mid_block.resnets.0", width, width);
    residual(half + ".mid_block.resnets.1", width, width);
    if (!layout.mid_attention) return;
    const std::string name = half + ".mid_block.attentions.0";
    norm(name + ".group_norm", width);
    for (const char* part : {"to_q", "to_k", "to_v", "to_out.0"}) {
      out.add(cat(name, ".", part, ".weight"), meta({width, width}));
      out.add(cat(name, ".", part, ".bias"), meta({width}));
    }
  }
  void encoder() {
    const std::size_t stages = layout.widths.size();
    std::int64_t from = layout.widths[0];
    conv("encoder.conv_in", from, layout.in, 3);
    for (std::size_t i = 0; i < stages; ++i) {
      for (std::int64_t j = 0; j < layout.blocks; ++j) {
        residual(cat("encoder.down_blocks.", i, ".resnets.", j), from, layout.widths[i]);
        from = layout.widths[i];
      }
      if (i + 1 < stages) {
        conv(cat("encoder.down_blocks.", i, ".downsamplers.0.conv"), from, from, 3);
      }
    }
    middle("encoder");
    norm("encoder.conv_norm_out", from);
    conv("encoder.conv_out", 2 * layout.latent, from, 3);
  }
  void decoder() {
    const std::size_t stages = layout.widths.size();
    std::int64_t from = layout.widths.back();
    conv("decoder.conv_in", from, layout.latent, 3);
    middle("decoder");
    for (std::size_t i = 0; i < stages; ++i) {
      const std::int64_t to = layout.widths[stages - 1 - i];
      for (std::int64_t j = 0; j <= layout.blocks; ++j) {
        residual(cat("decoder.up_blocks.", i, ".resnets.", j), from, to);
        from = to;
      }
      if (i + 1 < stages) conv(cat("decoder.up_blocks.", i, ".upsamplers.0.conv"), to, to, 3);
    }
    norm("decoder.conv_norm_out", from);
    conv("decoder.conv_out", layout.out, from, 3);
  }
};

ParameterSet expected_tensors(const KlLayout& layout) {
  KlShapes shapes{layout};
  shapes.encoder();
  if (layout.quant) shapes.conv("quant_conv", 2 * layout.latent, 2 * layout.latent, 1);
  if (layout.post_quant) shapes.conv("post_quant_conv", layout.latent, layout.latent, 1);
  shapes.decoder();
  return std::move(shapes.out);
}

// Published files of the first generation call the attention's layers query, key, value, proj_attn;
// some store them as 1x1 convolutions.
ParameterSet with_new_names(const ParameterSet& source) {
  ParameterSet out;
  for (const auto& [name, tensor] : source) {
    std::string fresh = name;
    for (const auto& [old, now] : {std::pair{".query.", ".to_q."},
                                   {".key.", ".to_k."},
                                   {".value.", ".to_v."},
                                   {".proj_attn.", ".to_out.0."}}) {
      const std::size_t at = fresh.find(old);
      if (at != std::string::npos && fresh.find(".attentions.") != std::string::npos) {
        fresh = fresh.substr(0, at) + now + fresh.substr(at + std::string(old).size());
      }
    }
    const bool square = tensor.dim() == 4 && tensor.size(2) == 1 && tensor.size(3) == 1 &&
                        fresh.find(".attentions.") != std::string::npos;
    out.add(fresh, square ? tensor.flatten(1) : tensor);
  }
  return out;
}

}  // namespace

std::shared_ptr<Autoencoder> make_kl(const KlLayout& layout, ParameterSet parameters,
                                     AutoencoderRuntime runtime, const std::string& where) {
  for (const std::int64_t width : layout.widths) {
    if (width % layout.groups != 0) {
      fail(ErrorKind::kBadFile,
           cat(where, ": ", width, " channels do not divide into ", layout.groups, " groups"),
           "give norm_num_groups");
    }
  }
  ParameterSet named = with_new_names(parameters);
  require_fit(expected_tensors(layout), named, where);
  return std::make_shared<AutoencoderKl>(layout, std::move(named), runtime);
}

}  // namespace tiltflow
