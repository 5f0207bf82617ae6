// Fused parts against the operators they stand for: values, gradients, every instruction set, bf16
// copies that follow their tensors.
#include "tiltflow/nn/fused.h"

#include <ATen/Parallel.h>

#include <cmath>

#include "tests/support.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/models/model_file.h"
#include "tiltflow/nn/attention.h"
#include "tiltflow/nn/kernels/kernels.h"
#include "tiltflow/sampler/fields.h"
#include "tiltflow/tensor/aten.h"
#include "tiltflow/tensor/random.h"
#include "tiltflow/train/optimizer.h"

namespace tiltflow {
namespace {

at::Tensor draw(std::uint32_t key, at::IntArrayRef shape, double scale = 1) {
  return RandomStreams(5).normal(Purpose::kProbe, key, 0, 0, 1, shape)[0] * scale;
}

// Values and gradients of f and g at the same inputs.
void expect_same(const std::function<at::Tensor(const std::vector<at::Tensor>&)>& fused,
                 const std::function<at::Tensor(const std::vector<at::Tensor>&)>& plain,
                 std::vector<at::Tensor> inputs, double tolerance) {
  const at::AutoGradMode grad(true);
  for (at::Tensor& input : inputs) input = input.detach().set_requires_grad(true);
  const at::Tensor a = fused(inputs);
  const at::Tensor b = plain(inputs);
  const at::Tensor cotangent = draw(99, a.sizes()).to(a.scalar_type());
  EXPECT_LT(test::relative_error(a.detach().to(at::kFloat), b.detach().to(at::kFloat)), tolerance);
  const auto ga = torch::autograd::grad({a}, inputs, {cotangent});
  const auto gb = torch::autograd::grad({b}, inputs, {cotangent.to(b.scalar_type())});
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    EXPECT_LT(test::relative_error(ga[i].to(at::kFloat), gb[i].to(at::kFloat)), tolerance)
        << "gradient of input " << i;
  }
}

at::Tensor plain_norm(const std::vector<at::Tensor>& in) {
  return at::layer_norm(in[0], {in[0].size(-1)}, {}, {}, 1e-6) * (in[2].unsqueeze(1) + 1) +
         in[1].unsqueeze(1);
}
at::Tensor plain_gated(const std::vector<at::Tensor>& in) {
  return in[0] + in[1].unsqueeze(1) * in[2];
}

}  // namespace

TEST(nn_fused, ValuesAndGradientsOfThePlainOperators) {
  for (const std::int64_t width : {96, 7}) {       // whole vectors, and a remainder
    for (const std::int64_t row_count : {3, 1}) {  // a row per sample, and one for all
      const at::Tensor x = draw(1, {3, 5, width}) * 2 + 1;
      const at::Tensor wide = draw(2, {row_count, 3 * width});
      const at::Tensor shift = wide.narrow(1, 0, width);
      const at::Tensor scale = wide.narrow(1, width, width);
      const at::Tensor y = draw(3, {3, 5, width});
      expect_same(
          [](const auto& in) { return fused::modulated_norm(in[0], in[1], in[2], at::kFloat); },
          plain_norm, {x, shift, scale}, 3e-6);
      expect_same([](const auto& in) { return fused::gated_sum(in[0], in[1], in[2]); }, plain_gated,
                  {x, scale, y}, 3e-6);
      expect_same(
          [](const auto& in) { return fused::modulated_norm(in[0], in[1], in[2], at::kBFloat16); },
          [](const auto& in) { return plain_norm(in).to(at::kBFloat16); }, {x, shift, scale}, 1e-2);
    }
  }
  expect_same([](const auto& in) { return fused::gelu(in[0]); },
              [](const auto& in) { return at::gelu(in[0], "tanh"); }, {draw(4, {1000}, 3)}, 3e-6);
}

// Several libtorch threads share the tokens of a sample: what one thread finds.
TEST(nn_fused, SeveralThreadsFindTheSame) {
  const at::Tensor x = draw(1, {2, 70, 24});
  const at::Tensor row = draw(2, {2, 24});
  const at::Tensor shared = draw(3, {1, 24});
  const at::Tensor y = draw(4, {2, 70, 24}).to(at::kBFloat16);
  const at::Tensor many = draw(5, {50000}, 3);
  const auto all = [&] {
    const at::AutoGradMode grad(true);
    const at::Tensor z = many.detach().set_requires_grad(true);
    const at::Tensor g = fused::gelu(z);
    const at::Tensor in = x.detach().set_requires_grad(
        true);  // rows that ask for no gradient: the backward pass is shared as well
    const at::Tensor g_norm = torch::autograd::grad(
        {fused::modulated_norm(in, row, row * 2, at::kFloat)}, {in}, {x * 3})[0];
    const at::Tensor y_in = y.detach().set_requires_grad(true);
    const at::Tensor g_gated =
        torch::autograd::grad({fused::gated_sum(x, row, y_in)}, {y_in}, {x * 3})[0].to(at::kFloat);
    return std::vector<at::Tensor>{g_norm,
                                   g_gated,
                                   fused::modulated_norm(x, row, row * 2, at::kFloat),
                                   fused::modulated_norm(x, shared, shared, at::kBFloat16),
                                   fused::gated_sum(x, row, y),
                                   g.detach(),
                                   torch::autograd::grad({g.sum()}, {z})[0]};
  };
  const int before = at::get_num_threads();
  at::set_num_threads(1);
  EXPECT_EQ(fused::threads_of_a_pass(), 1);
  const std::vector<at::Tensor> one = all();
  at::set_num_threads(3);
  EXPECT_EQ(fused::threads_of_a_pass(), 3) << "compiled without OpenMP";
  const std::vector<at::Tensor> three = all();
  at::set_num_threads(before);
  for (std::size_t i = 0; i < one.size(); ++i) {
    EXPECT_LT(test::relative_error(three[i], one[i]), 1e-6) << i;
  }
}

// Our own kernel for few tokens and libtorch's for many; heads that fill whole vectors or not;
// scores far from zero.
TEST(nn_fused, AttentionOfFewAndManyTokens) {
  struct Case {
    std::int64_t n, tokens, heads, size;
    double scale;
  };
  for (const Case& c :
       {Case{2, 9, 4, 4, 1}, Case{3, 49, 3, 32, 1}, Case{1, 1, 2, 5, 1}, Case{2, 16, 1, 72, 3},
        Case{1, 128, 2, 17, 1}, Case{1, 129, 2, 16, 1}, Case{2, 33, 2, 8, 12},
        Case{2, 256, 3, 64, 1}, Case{1, 135, 2, 18, 1}, Case{1, 1100, 1, 16, 1}}) {
    const at::Tensor packed = draw(6, {c.n, c.tokens, 3 * c.heads * c.size}, c.scale);
    const auto plain = [&](const std::vector<at::Tensor>& in) {
      const auto parts =
          in[0].view({c.n, c.tokens, 3, c.heads, c.size}).permute({2, 0, 3, 1, 4}).unbind(0);
      const at::Tensor scores =
          at::matmul(parts[0], parts[1].transpose(-2, -1)) / std::sqrt(static_cast<double>(c.size));
      return at::matmul(scores.softmax(-1), parts[2])
          .transpose(1, 2)
          .reshape({c.n, c.tokens, c.heads * c.size});
    };
    expect_same([&](const auto& in) { return fused::attention(in[0], c.heads); }, plain, {packed},
                c.scale > 4 ? 1e-4 : 2e-5);
    // bf16: within rounding of the plain operators on the same numbers.
    const at::Tensor half = packed.to(at::kBFloat16);
    const at::Tensor exact = half.to(at::kFloat).requires_grad_();
    const at::Tensor input = half.detach().requires_grad_();
    const at::Tensor found = fused::attention(input, c.heads);
    const at::Tensor expected = plain({exact});
    const at::Tensor cotangent = draw(11, expected.sizes()).to(at::kBFloat16);
    EXPECT_LT(test::relative_error(found.to(at::kFloat), expected), 6e-3) << c.tokens;
    const at::Tensor g = torch::autograd::grad({found}, {input}, {cotangent})[0].to(at::kFloat);
    const at::Tensor g_expected =
        torch::autograd::grad({expected}, {exact}, {cotangent.to(at::kFloat)})[0];
    EXPECT_LT(test::relative_error(g, g_expected), 2e-2) << c.tokens;
  }
}

TEST(nn_fused, ExtremeValues) {
  const at::Tensor x =
      at::tensor(std::vector<float>{-1e30F, -100, -20, -5.5F, -1e-30F, 0, 1e-3F, 20, 100, 1e30F,
                                    std::numeric_limits<float>::quiet_NaN()});
  const at::Tensor found = fused::gelu(x);
  const at::Tensor expected = at::gelu(x.to(at::kDouble), "tanh");
  for (std::int64_t i = 0; i < 10; ++i) {
    const double e = expected[i].item<double>();
    const double f = found[i].item<double>();
    EXPECT_LT(std::abs(f - e), 1e-6 * std::abs(e) + 1e-6) << x[i].item<float>();
  }
  EXPECT_TRUE(std::isnan(found[10].item<float>()));
  EXPECT_TRUE(std::isnan(fused::gelu(x.to(at::kBFloat16))[10].item<float>()));
}

// The attention of one table, whatever kernels() chooses.
template <class T>
at::Tensor attention_of(const kernels::Table<T>& table, const at::Tensor& packed,
                        std::int64_t heads) {
  const std::int64_t n = packed.size(0);
  const std::int64_t t = packed.size(1);
  const std::int64_t d = packed.size(2) / (3 * heads);
  const at::Tensor out = at::empty({n, t, heads * d}, packed.options());
  const at::Tensor log_sum = at::empty({n, heads, t});
  const at::Tensor scratch = at::empty({table.attention_scratch(t, d)});
  table.attention(static_cast<const T*>(packed.const_data_ptr()), static_cast<T*>(out.data_ptr()),
                  log_sum.data_ptr<float>(), scratch.data_ptr<float>(), 0, n * heads, t, heads, d);
  return out.to(at::kFloat);
}

TEST(nn_fused, EveryInstructionSetAgrees) {
  const at::Tensor x = draw(7, {4, 37});
  const at::Tensor reference = at::gelu(x, "tanh");
  const std::int64_t h = 2;
  const at::Tensor packed = draw(8, {2, 70, 3 * h * 24});
  const at::Tensor expected = fused::attention(packed, h);
  const kernels::UsableKernels& usable = kernels::usable_kernels();
  EXPECT_EQ(usable.tables[usable.count - 1], &kernels::kernels());
  for (int i = 0; i < usable.count; ++i) {
    const kernels::Kernels* table = usable.tables[i];
    const at::Tensor out = at::empty_like(x);
    table->full.gelu(x.const_data_ptr<float>(), out.data_ptr<float>(), x.numel());
    EXPECT_LT(test::relative_error(out, reference), 3e-6) << table->name;
    const at::Tensor half = x.to(at::kBFloat16);
    const at::Tensor half_out = at::empty_like(half);
    table->half.gelu(static_cast<const kernels::Bf16*>(half.const_data_ptr()),
                     static_cast<kernels::Bf16*>(half_out.data_ptr()), x.numel());
    EXPECT_LT(test::relative_error(half_out.to(at::kFloat), at::gelu(half.to(at::kFloat), "tanh")),
              5e-3)
        << table->name;
    EXPECT_LT(test::relative_error(attention_of(table->full, packed, h), expected), 1e-5)
        << table->name;
    EXPECT_LT(
        test::relative_error(attention_of(table->half, packed.to(at::kBFloat16), h), expected),
        1e-2)
        << table->name;
  }
}

TEST(nn_fused, SecondDerivativesAreRefused) {
  const at::AutoGradMode grad(true);
  const at::Tensor x = draw(8, {5}).set_requires_grad(true);
  const at::Tensor y = fused::gelu(x);
  test::expect_error(ErrorKind::kFailure, "no second derivatives", [&] {
    torch::autograd::grad({y.sum()}, {x}, {}, true, /*create_graph=*/true);
  });
}

// Linear layers with few and many rows, packed weights or not: values and all gradients; a frozen
// one still hands the gradient through.
TEST(nn_fused, LinearLayersPackedOrNot) {
  ParameterSet weights;
  weights.add("l.weight", draw(14, {96, 64}).set_requires_grad(true));
  weights.add("l.bias", draw(15, {96}).set_requires_grad(true));
  ParameterSet frozen;
  frozen.add("l.weight", weights.at("l.weight").detach());
  frozen.add("l.bias", weights.at("l.bias").detach());
  const Linear layer = make_linear(weights, {}, "l");
  const Linear same = make_linear(frozen, {}, "l");
  EXPECT_EQ(layer.copies, same.copies);  // one copy of a weight that two models use
  for (const std::int64_t rows : {1, 7, 200}) {
    for (const bool packing : {false, true}) {
      const auto plain = [&](const std::vector<at::Tensor>& in) {
        return at::linear(in[0], in[1], in[2]);
      };
      const at::Tensor x = draw(16, {1, rows, 64});
      const auto run = [&](const auto& in) {
        return fused::linear({in[1], in[2]}, in[0], packing);
      };
      expect_same(run, plain, {x, layer.weight, layer.bias}, 1e-5);
      const auto run_half = [&](const auto& in) {
        return fused::linear({in[1], in[2]}, in[0].to(at::kBFloat16), packing).to(at::kFloat);
      };
      expect_same(run_half, plain, {x, layer.weight, layer.bias}, 1e-2);
      const at::AutoGradMode grad(true);
      const at::Tensor input = x.detach().set_requires_grad(true);
      const at::Tensor y = fused::linear(same, input, packing);
      const at::Tensor g = torch::autograd::grad({y.sum()}, {input})[0];
      EXPECT_LT(test::relative_error(g, layer.weight.detach().sum(0).expand_as(g)), 1e-5) << rows;
    }
  }
}

// Stale copies would train on old weights: an optimiser step, an assignment and a new tensor must
// all be seen.
TEST(nn_fused, CopiesFollowTheirTensors) {
  for (const bool packing : {false, true}) {
    ParameterSet weights;
    weights.add("l.weight", draw(9, {4, 3}).set_requires_grad(true));
    weights.add("l.bias", draw(10, {4}).set_requires_grad(true));
    const Linear layer = make_linear(weights, {}, "l");
    const at::Tensor many = draw(11, {150, 3});
    const auto error = [&] {
      double largest = 0;
      for (const at::Tensor& x :
           {many.to(at::kBFloat16), many}) {  // fp32: enough rows to be packed
        const at::Tensor found = fused::linear(layer, x, packing);
        const at::Tensor expected = at::linear(x, weights.at("l.weight").to(x.scalar_type()),
                                               weights.at("l.bias").to(x.scalar_type()));
        largest = std::max(largest, test::relative_error(found.detach().to(at::kFloat),
                                                         expected.detach().to(at::kFloat)));
      }
      return largest;
    };
    EXPECT_LT(error(), 1e-5);
    AdamW optimizer({}, weights);
    optimizer.step({at::ones({4, 3}), at::ones({4})}, 0.5);
    EXPECT_LT(error(), 1e-5);
    {
      ParameterSet other;
      other.add("l.weight", draw(12, {4, 3}));
      other.add("l.bias", draw(13, {4}));
      const SwappedWeights swapped(weights, other);
      EXPECT_LT(error(), 1e-5);
    }
    EXPECT_LT(error(), 1e-5);
  }
}

namespace {

// An official fixture: weights, and recorded inputs and outputs.
struct OfficialSit {
  const char *weights, *forward, *heads;

  // The output, and gradients of x, of the weights and (`adapted`) of adapters on them.
  std::vector<at::Tensor> gradients(const ModelRuntime& runtime, bool adapted = false) const {
    const ParameterSet g = read_safetensors(test::golden(forward)).tensors;
    const LoadedModel model =
        load_velocity_model(test::golden(weights), {{"num_heads", heads}}, runtime);
    const at::AutoGradMode grad(true);
    const ParameterSet all = clone(model.model->parameters(), true);
    const AdapterSet adapters = adapted ? drawn_adapters(all) : AdapterSet{};
    const auto trainable = model.model->rebind(all, adapters);
    const at::Tensor x = g.at("x").clone().set_requires_grad(true);
    std::vector<at::Tensor> wanted{x};
    for (const auto& [name, tensor] : all) {
      if (!model.model->is_buffer(name)) wanted.push_back(tensor);
    }
    for (const auto& [layer, adapter] : adapters) {
      wanted.push_back(adapter.a);
      wanted.push_back(adapter.b);
    }
    const at::Tensor out = trainable->velocity(x, g.at("t"), {g.at("y")});
    std::vector<at::Tensor> found = torch::autograd::grad({(out * g.at("cot")).sum()}, wanted);
    found.insert(found.begin(), out.detach());
    return found;
  }

 private:
  static AdapterSet drawn_adapters(const ParameterSet& all) {
    AdapterSet out;
    std::uint32_t key = 20;
    for (const char* layer :
         {"blocks.0.attn.qkv", "blocks.1.mlp.fc2", "blocks.0.adaLN_modulation.1"}) {
      const at::Tensor& w = all.at(cat(layer, ".weight"));
      out[layer] = {draw(++key, {2, w.size(1)}, 0.2).set_requires_grad(true),
                    draw(++key, {w.size(0), 2}, 0.2).set_requires_grad(true), 1.5};
    }
    return out;
  }
};

// The runtimes that are compared: plain and fused, in fp32 and in bf16.
struct FourRuntimes {
  ModelRuntime plain, fast, half, fast_half;

  FourRuntimes() {
    fast.fused = true;
    half.precision = MatmulPrecision::kBf16;
    half.attention = AttentionBackend::kFused;
    fast_half.precision = MatmulPrecision::kBf16;
    fast_half.fused = true;
  }
};

void expect_networks_close(const std::vector<at::Tensor>& exact,
                           const std::vector<at::Tensor>& found,
                           const std::vector<at::Tensor>& slow16,
                           const std::vector<at::Tensor>& fast16) {
  for (std::size_t i = 0; i < exact.size(); ++i) {
    EXPECT_LT(test::relative_error(found[i], exact[i]), 1e-4) << i;
    EXPECT_LT(test::relative_error(fast16[i], exact[i]),
              1.5 * test::relative_error(slow16[i], exact[i]) + 0.01)
        << i;
  }
}

}  // namespace

// Whole networks of the official fixtures, without and with checkpointed blocks; fp32 exact to
// rounding, bf16 as close as operator by operator.
TEST(nn_fused, SitEqualsThePlainModel) {
  for (const OfficialSit& c :
       {OfficialSit{"sit_a_ema.safetensors", "sit_a_forward.safetensors", "4"},
        OfficialSit{"sit_b_ema.safetensors", "sit_b_forward.safetensors", "3"}}) {
    const ParameterSet g = read_safetensors(test::golden(c.forward)).tensors;
    FourRuntimes r;
    const auto exact = c.gradients(r.plain);
    const auto found = c.gradients(r.fast);
    EXPECT_LT(test::relative_error(found[0], g.at("out")), 1e-5);
    EXPECT_LT(test::relative_error(found[1], g.at("vjp_x")), 1e-5);
    expect_networks_close(exact, found, c.gradients(r.half), c.gradients(r.fast_half));
    expect_networks_close(c.gradients(r.plain, true), c.gradients(r.fast, true),
                          c.gradients(r.half, true), c.gradients(r.fast_half, true));
    r.fast.activation_checkpointing = true;
    const auto recomputed = c.gradients(r.fast);
    for (std::size_t i = 0; i < exact.size(); ++i) {
      EXPECT_TRUE(at::equal(found[i], recomputed[i])) << i;
    }
  }
}

// Frozen passes (velocity and vjp, packed weights) of both fixtures against the plain modules:
// batches of one, odd and large, guided or not, both precisions.
TEST(nn_fused, FrozenPassesOfEveryShape) {
  for (const auto& [weights, heads] :
       {std::pair{"sit_a_ema.safetensors", "4"}, std::pair{"sit_b_ema.safetensors", "3"}}) {
    for (const MatmulPrecision precision : {MatmulPrecision::kFull, MatmulPrecision::kBf16}) {
      ModelRuntime plain, fast;
      plain.precision = fast.precision = precision;
      fast.fused = true;
      plain.attention = AttentionBackend::kFused;
      const std::shared_ptr<const VelocityModel> slow_model =
          load_velocity_model(test::golden(weights), {{"num_heads", heads}}, plain).model;
      const std::shared_ptr<const VelocityModel> fast_model =
          load_velocity_model(test::golden(weights), {{"num_heads", heads}}, fast).model;
      const std::shared_ptr<const VelocityModel> exact_model =
          load_velocity_model(test::golden(weights), {{"num_heads", heads}}).model;
      for (const std::int64_t n : {1, 5, 67}) {
        for (const double scale : {1.0, 2.5}) {
          const auto field = [&](const std::shared_ptr<const VelocityModel>& model)
              -> std::shared_ptr<const VelocityField> {
            return scale == 1 ? model : guided(model, Guidance{scale}, model->classes());
          };
          std::vector<std::int64_t> sizes = slow_model->sample_shape();
          sizes.insert(sizes.begin(), n);
          const at::Tensor x = draw(30, sizes);
          const at::Tensor w = draw(31, sizes);
          const at::Tensor t = at::full({n}, 0.4);
          const at::Tensor labels = at::arange(n, at::kLong).remainder(slow_model->classes());
          const Vjp exact = field(exact_model)->vjp(x, t, {labels}, w);
          const Vjp slow = field(slow_model)->vjp(x, t, {labels}, w);
          const Vjp found = field(fast_model)->vjp(x, t, {labels}, w);
          const std::string where = cat(weights, " n ", n, " scale ", scale);
          const double allowed_v =
              precision == MatmulPrecision::kFull
                  ? 1e-5
                  : 1.5 * test::relative_error(slow.velocity, exact.velocity) + 1e-3;
          const double allowed_g =
              precision == MatmulPrecision::kFull
                  ? 1e-5
                  : 1.5 * test::relative_error(slow.input_gradient, exact.input_gradient) + 1e-3;
          EXPECT_LT(test::relative_error(found.velocity, exact.velocity), allowed_v) << where;
          EXPECT_LT(test::relative_error(found.input_gradient, exact.input_gradient), allowed_g)
              << where;
        }
      }
    }
  }
}

}  // namespace tiltflow
