// What a GPU computes beside the CPU in double: kernels, recorded calls, training, resuming.
// Skipped where libtorch finds no CUDA device.
#include <c10/core/CachingDeviceAllocator.h>

#include "tests/same_bytes.h"
#include "tests/support.h"
#include "tests/train/small_run.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/models/model_file.h"
#include "tiltflow/models/sit/sit.h"
#include "tiltflow/nn/fused.h"
#include "tiltflow/nn/recorded.h"
#include "tiltflow/tensor/device.h"
#include "tiltflow/tensor/parallel.h"
#include "tiltflow/tensor/random.h"

namespace tiltflow {
namespace {

using Tensors = std::vector<at::Tensor>;
using Function = std::function<at::Tensor(const Tensors&)>;

at::Tensor draw(std::uint32_t key, at::IntArrayRef shape, double scale = 1) {
  return RandomStreams(5).normal(Purpose::kProbe, key, 0, 0, 1, shape)[0] * scale;
}

// Of the norms: single entries near zero do not count.
double distance(const at::Tensor& found, const at::Tensor& expected) {
  const at::Tensor a = found.detach().cpu().to(at::kDouble);
  const at::Tensor b = expected.detach().cpu().to(at::kDouble);
  return ((a - b).norm() / b.norm()).item<double>();
}

// Values and input gradients, one after another.
Tensors with_gradients(const Function& f, const Tensors& inputs) {
  const at::AutoGradMode grad(true);
  Tensors leaves;
  for (const at::Tensor& input : inputs) leaves.push_back(input.detach().set_requires_grad(true));
  const at::Tensor y = f(leaves);
  const at::Tensor cotangent = draw(99, y.sizes()).to(y.device()).to(y.scalar_type());
  Tensors out{y.detach()};
  for (const at::Tensor& g : torch::autograd::grad({y}, leaves, {cotangent})) out.push_back(g);
  return out;
}

class gpu_parts : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!at::hasCUDA()) GTEST_SKIP() << "no CUDA device";
    set_thread_policy({1, 1});
    set_compute_device("cuda");
  }
  void TearDown() override {
    set_compute_device("cpu");
    set_thread_policy(before_);
  }
  ThreadPolicy before_ = thread_policy();
};
using gpu_networks = gpu_parts;
using gpu_train = gpu_parts;

at::Tensor plain_norm(const Tensors& in) {
  return at::layer_norm(in[0], {in[0].size(-1)}, {}, {}, 1e-6) * (in[2].unsqueeze(1) + 1) +
         in[1].unsqueeze(1);
}
at::Tensor plain_gated(const Tensors& in) { return in[0] + in[1].unsqueeze(1) * in[2]; }

at::Tensor plain_attention(const at::Tensor& packed, std::int64_t heads) {
  const std::int64_t n = packed.size(0);
  const std::int64_t t = packed.size(1);
  const std::int64_t d = packed.size(2) / (3 * heads);
  const Tensors in = packed.view({n, t, 3, heads, d}).permute({2, 0, 3, 1, 4}).unbind(0);
  return at::matmul((at::matmul(in[0], in[1].transpose(-2, -1)) / std::sqrt(static_cast<double>(d)))
                        .softmax(-1),
                    in[2])
      .transpose(1, 2)
      .reshape({n, t, heads * d});
}

// Tensors of one shape with rows of factors for them, and how far results may be from exact ones.
struct PartsCase {
  std::int64_t n, t, c;
  std::int64_t row_count;
  std::int64_t offset;  // single columns: not from a row that 4 divides, so not aligned to 16 bytes
  at::ScalarType type;

  at::Tensor row(const at::Tensor& wide, std::int64_t which) const {
    return wide.narrow(1, offset + which * c, c);
  }
  void check(const Function& fused, const Function& plain, const Tensors& inputs) const {
    Tensors there, wider;
    for (const at::Tensor& input : inputs) {
      there.push_back(input.to(at::kCUDA));
      wider.push_back(input.to(at::kDouble));
    }
    const Tensors found = with_gradients(fused, there);
    const Tensors expected = with_gradients(plain, wider);
    for (std::size_t i = 0; i < found.size(); ++i) {
      EXPECT_LT(distance(found[i], expected[i]), type == at::kFloat ? 2e-6 : 6e-3)
          << n << " x " << t << " x " << c << ", " << row_count << " rows at " << offset
          << ", part " << i << ", " << type;
    }
  }
};

void check_parts(const PartsCase& p, const at::Tensor& x, const at::Tensor& y,
                 const at::Tensor& wide) {
  p.check(
      [&](const Tensors& in) {
        return fused::modulated_norm(in[0], p.row(in[1], 0), p.row(in[1], 1), p.type);
      },
      [&](const Tensors& in) { return plain_norm({in[0], p.row(in[1], 0), p.row(in[1], 1)}); },
      {x, wide});
  p.check(
      [&](const Tensors& in) { return fused::gated_sum(in[0], p.row(in[1], 0), in[2].to(p.type)); },
      [&](const Tensors& in) { return plain_gated({in[0], p.row(in[1], 0), in[2]}); },
      {x, wide, y});
  p.check(
      [&](const Tensors& in) {
        const auto [sum, normed] = fused::gated_norm(in[0], p.row(in[1], 0), in[2].to(p.type),
                                                     p.row(in[1], 1), p.row(in[1], 2));
        return at::cat({sum, normed.to(at::kFloat)}, 2);
      },
      [&](const Tensors& in) {
        const at::Tensor sum = plain_gated({in[0], p.row(in[1], 0), in[2]});
        return at::cat({sum, plain_norm({sum, p.row(in[1], 1), p.row(in[1], 2)})}, 2);
      },
      {x, wide, y});
  if (p.offset != 0) return;
  p.check([&](const Tensors& in) { return fused::gelu(in[0].to(p.type)); },
          [&](const Tensors& in) { return at::gelu(in[0], "tanh"); }, {x});
}

}  // namespace

TEST_F(gpu_parts, KernelsEqualThePlainOperators) {
  struct Shape {
    std::int64_t n, t, c;
  };
  for (const auto& [n, t, c] :
       std::vector<Shape>{{1, 1, 4}, {3, 17, 36}, {2, 49, 96}, {5, 256, 384}, {2, 70, 1152}}) {
    for (const std::int64_t row_count : {n, std::int64_t{1}}) {
      for (const std::int64_t offset : {std::int64_t{0}, c, std::int64_t{1}}) {
        const at::Tensor x = draw(1, {n, t, c}) * 2 + 1;
        const at::Tensor y = draw(3, {n, t, c});
        const at::Tensor wide = draw(2, {row_count, 4 * c + 1});
        for (const at::ScalarType type : {at::kFloat, at::kBFloat16}) {
          if (c == 4 && n * t == 1 && type == at::kBFloat16) {
            continue;  // a single row of bf16 has no average error
          }
          check_parts({n, t, c, row_count, offset, type}, x, y, wide);
        }
      }
    }
  }
  EXPECT_TRUE(fused::takes(at::zeros({1, 2, 8}, at::kCUDA)));
  EXPECT_FALSE(fused::takes(at::zeros({1, 2, 6}, at::kCUDA)));
}

TEST_F(gpu_parts, AttentionEqualsThePlainOne) {
  for (const at::ScalarType type : {at::kFloat, at::kBFloat16}) {
    const at::Tensor packed = draw(8, {3, 70, 3 * 2 * 24});
    const Tensors found =
        with_gradients([&](const Tensors& in) { return fused::attention(in[0].to(type), 2); },
                       {packed.to(at::kCUDA)});
    const Tensors expected = with_gradients(
        [&](const Tensors& in) { return plain_attention(in[0], 2); }, {packed.to(at::kDouble)});
    for (std::size_t i = 0; i < 2; ++i) {
      EXPECT_LT(distance(found[i], expected[i]), type == at::kFloat ? 2e-6 : 6e-3) << i;
    }
  }
}

// Long enough for several blocks of keys, whose sums libtorch adds up as they come unless told
// otherwise.
TEST_F(gpu_parts, AttentionAddsUpInAFixedOrder) {
  for (const at::ScalarType type : {at::kFloat, at::kBFloat16}) {
    const at::Tensor packed = draw(8, {4, 1000, 3 * 2 * 64}).to(at::kCUDA);
    const auto gradient = [&] {
      return with_gradients([&](const Tensors& in) { return fused::attention(in[0].to(type), 2); },
                            {packed})[1];
    };
    const at::Tensor first = gradient();
    for (int i = 0; i < 5; ++i) EXPECT_TRUE(at::equal(gradient(), first)) << type;
  }
}

// Both fixtures, both precisions, recorded or not, batches that come and go, labels and none, other
// states every time: values and the vector-Jacobian product.
TEST_F(gpu_networks, EqualTheCpuInDouble) {
  for (const auto& [name, heads] : {std::pair{"sit_a", "4"}, {"sit_b", "3"}}) {
    const std::map<std::string, std::string> args{{"num_heads", heads}};
    const auto file = test::golden(std::string(name) + "_ema.safetensors");
    set_compute_device("cpu");
    const auto exact = load_velocity_model(file, args, {}, at::kDouble);
    set_compute_device("cuda");
    for (const MatmulPrecision precision : {MatmulPrecision::kFull, MatmulPrecision::kBf16}) {
      for (const bool graphs : {true, false}) {
        ModelRuntime runtime{precision, AttentionBackend::kFused, false, true};
        runtime.graphs = graphs;
        const auto loaded = load_velocity_model(file, args, runtime);
        const std::int64_t before = RecordedNetwork::replays();
        std::uint32_t key = 0;
        for (int round = 0; round < 3; ++round) {
          for (const std::int64_t n : {1, 5, 67}) {
            for (const bool labelled : {true, false}) {
              std::vector<std::int64_t> shape = loaded.model->sample_shape();
              shape.insert(shape.begin(), n);
              const at::Tensor x = draw(++key, shape);
              const at::Tensor g = draw(1000 + key, shape);
              const at::Tensor t = labelled ? RandomStreams(1).uniform(Purpose::kTime, key, 0, n)
                                            : time_tensor(0.1 * key, x);
              const Condition condition{
                  labelled ? at::remainder(at::arange(n) + round, loaded.model->classes() + 1)
                           : at::Tensor()};
              const Vjp expected = exact.model->vjp(x.to(at::kDouble), t.to(at::kDouble), condition,
                                                    g.to(at::kDouble));
              const Vjp found = loaded.model->vjp(x, t, condition, g);
              const at::NoGradGuard no_grad;
              const at::Tensor velocity = loaded.model->velocity(x, t, condition);
              const double tolerance = precision == MatmulPrecision::kFull ? 1e-5 : 0.02;
              EXPECT_LT(distance(velocity, expected.velocity), tolerance)
                  << name << " " << n << " " << labelled << " round " << round;
              EXPECT_LT(distance(found.velocity, expected.velocity), tolerance)
                  << name << " " << n << " " << labelled << " round " << round;
              EXPECT_LT(distance(found.input_gradient, expected.input_gradient), 2 * tolerance)
                  << name << " " << n << " " << labelled << " round " << round;
              EXPECT_TRUE(velocity.device().is_cpu());
            }
          }
        }
        EXPECT_EQ(RecordedNetwork::replays() - before,
                  graphs ? 36 - 10 : 0);  // all but the first call of a kind; one sample with its
                                          // label is of the kind of one without
      }
    }
  }
}

namespace {

// Gradients of several calls, each of the one before, and where they lead.
Tensors chained_gradients(const VelocityModel& model, const ParameterSet& weights, at::Tensor x,
                          int calls) {
  const at::AutoGradMode grad(true);
  const at::Tensor labels = at::tensor(std::vector<std::int64_t>{0, 3, 10});
  for (int i = 0; i < calls; ++i) {
    x = x + model.velocity(x, time_tensor(0.2 * (i + 1), x), {labels}) * 0.2;
  }
  Tensors out =
      torch::autograd::grad({x.square().sum()}, weights.tensors(), {}, false, false, true);
  for (std::size_t i = 0; i < out.size(); ++i) {
    if (!out[i].defined()) out[i] = at::zeros_like(weights.tensors()[i]);
  }
  out.push_back(x.detach());
  return out;
}

// |found - expected| / |expected| over all tensors.
double joint_error(const Tensors& found, const Tensors& expected) {
  double error = 0;
  double size = 0;
  for (std::size_t i = 0; i < found.size(); ++i) {
    error += (found[i].cpu().to(at::kDouble) - expected[i]).square().sum().item<double>();
    size += expected[i].square().sum().item<double>();
  }
  return std::sqrt(error / size);
}

}  // namespace

// Weights that change between calls, and several calls before the first backward pass.
TEST_F(gpu_networks, TrainingGradientsEqualTheCpuInDouble) {
  const std::map<std::string, std::string> args{{"num_heads", "3"}};
  const auto file = test::golden("sit_b_ema.safetensors");
  set_compute_device("cpu");
  const auto exact = load_velocity_model(file, args, {}, at::kDouble);
  set_compute_device("cuda");
  for (const MatmulPrecision precision : {MatmulPrecision::kFull, MatmulPrecision::kBf16}) {
    const auto loaded =
        load_velocity_model(file, args, {precision, AttentionBackend::kFused, false, true});
    const ParameterSet there = clone(loaded.model->parameters(), true);
    const ParameterSet here = clone(exact.model->parameters(), true);
    const auto trained = loaded.model->rebind(there, {});
    const auto reference = exact.model->rebind(here, {});
    const std::int64_t before = RecordedNetwork::replays();
    for (int round = 0; round < 5; ++round) {
      const int calls = round < 3 ? 1 : 4;  // more than are recorded
      const at::Tensor x = draw(static_cast<std::uint32_t>(round), {3, 1, 28, 28});
      const Tensors found = chained_gradients(*trained, there, x, calls);
      const Tensors expected = chained_gradients(*reference, here, x.to(at::kDouble), calls);
      EXPECT_LT(joint_error(found, expected), precision == MatmulPrecision::kFull ? 1e-5 : 0.03)
          << "round " << round;
      const at::NoGradGuard no_grad;
      std::uint32_t key = 0;
      for (const auto& [name, tensor] : there) {
        if (trained->is_buffer(name)) continue;
        const at::Tensor change =
            draw(++key + 100 * static_cast<std::uint32_t>(round), tensor.sizes(), 0.05);
        tensor.detach().add_(change.to(tensor.device()));
        here.at(name).detach().add_(change);
      }
    }
    EXPECT_GE(RecordedNetwork::replays() - before, 2 + 2);
    const at::Tensor x = draw(7, {3, 1, 28, 28});
    EXPECT_GT(
        distance(chained_gradients(*reference, here, x.to(at::kDouble), 1).back(),
                 chained_gradients(*exact.model->rebind(clone(exact.model->parameters(), true), {}),
                                   clone(exact.model->parameters(), true), x.to(at::kDouble), 1)
                     .back()),
        0.1)
        << "the changes must matter";
  }
}

// A graph that is kept gives the same gradient again, though its backward pass has reused the
// memory of the activations.
TEST_F(gpu_networks, AKeptGraphAnswersTwice) {
  const auto loaded =
      load_velocity_model(test::golden("sit_b_ema.safetensors"), {{"num_heads", "3"}},
                          {MatmulPrecision::kFull, AttentionBackend::kFused, false, true});
  const at::AutoGradMode grad(true);
  for (int i = 0; i < 3; ++i) {
    const at::Tensor x =
        draw(static_cast<std::uint32_t>(i), {3, 1, 28, 28}).set_requires_grad(true);
    const at::Tensor y = loaded.model->velocity(x, time_tensor(0.3, x), {});
    const auto gradient = [&](double scale, bool keep) {
      return torch::autograd::grad({y}, {x}, {draw(50, {3, 1, 28, 28}) * scale}, keep)[0];
    };
    const at::Tensor once = gradient(1, true);
    const at::Tensor twice = gradient(2, true);
    const at::Tensor last = gradient(1, false);
    EXPECT_LT(distance(twice, once * 2), 1e-6) << i;
    EXPECT_TRUE(at::equal(last, once)) << i;
  }
}

// Every kind of policy and method: the weights move as on the CPU, and a resumed run ends with the
// same bytes.
TEST_F(gpu_train, RunsMoveTheWeightsAsOnTheCpuAndResumeExactly) {
  const test::TempDir dir;
  const std::vector<std::pair<std::string, std::string>> cases{
      {"adjoint-matching", "full"},    {"adjoint-matching", "lora"},
      {"adjoint-matching", "control"}, {"socm", "full"},
      {"flow-grpo", "full"},           {"draft", "full"}};
  for (const auto& [method, policy] : cases) {
    for (const char* precision : {"fp32", "bf16"}) {
      const std::string name = cat(method, "-", policy, "-", precision);
      FinetuneConfig config = test::small_run(dir);
      config.method.name = method;
      config.policy.kind = policy;
      config.policy.control.kind = "conv";
      config.policy.control.width = 8;
      config.batch = 8;
      config.micro_batch = 8;
      config.compute.attention = "fused";
      config.compute.kernels = "fused";
      config.compute.precision = precision;
      config.train.steps = 6;
      const std::filesystem::path here = dir / cat(name, "-cpu");
      const std::filesystem::path there = dir / cat(name, "-gpu");
      const std::filesystem::path resumed = dir / cat(name, "-resumed");
      const std::string whole = test::run_on("cuda", config, there);
      if (std::string(precision) == "fp32") {
        test::run_on("cpu", config, here);
        const ParameterSet base = read_safetensors(dir / "base.safetensors").tensors;
        const ParameterSet cpu = read_safetensors(here / "model.safetensors").tensors;
        const ParameterSet gpu = read_safetensors(there / "model.safetensors").tensors;
        double error = 0;
        double change = 0;
        for (const auto& [key, tensor] : cpu) {
          const at::Tensor start = base.contains(key) ? base.at(key)
                                   : base.contains(key.substr(key.find('.') + 1))
                                       ? base.at(key.substr(key.find('.') + 1))
                                       : at::zeros_like(tensor);
          if (!at::isFloatingType(tensor.scalar_type())) continue;
          error += (gpu.at(key) - tensor).square().sum().item<double>();
          change += (tensor - start).square().sum().item<double>();
        }
        EXPECT_LT(std::sqrt(error / change), 0.02) << name << ": change " << std::sqrt(change);
        EXPECT_GT(change, 0) << name;
      }
      std::filesystem::copy(there, resumed, std::filesystem::copy_options::recursive);
      for (const char* late : {"checkpoints/step-000004", "checkpoints/step-000006"}) {
        std::filesystem::remove_all(resumed / late);
      }
      std::filesystem::remove(resumed / "model.safetensors");
      EXPECT_TRUE(test::same_bytes(test::run_on("cuda", config, resumed, true), whole))
          << name << " did not resume to the same bytes";
    }
  }
}

TEST_F(gpu_train, MemoryStaysConstant) {
  const auto loaded =
      load_velocity_model(test::golden("sit_b_ema.safetensors"), {{"num_heads", "3"}},
                          {MatmulPrecision::kBf16, AttentionBackend::kFused, false, true});
  const ParameterSet weights = clone(loaded.model->parameters(), true);
  const auto trained = loaded.model->rebind(weights, {});
  const auto reserved = [] {
    return c10::getDeviceAllocator(at::kCUDA)->getDeviceStats(0).reserved_bytes[0].current;
  };
  std::int64_t early = 0;
  for (int i = 0; i < 500; ++i) {
    const at::Tensor x = draw(static_cast<std::uint32_t>(i), {4, 1, 28, 28});
    loaded.model->vjp(x, time_tensor(0.3, x), {}, x);
    const at::AutoGradMode grad(true);
    const at::Tensor y = trained->velocity(x, time_tensor(0.3, x), {});
    if (i % 3 > 0) {
      torch::autograd::grad({y.sum()}, weights.tensors(), {}, false, false,
                            true);  // every third graph is dropped unused
    }
    if (i == 50) early = reserved();
  }
  EXPECT_EQ(reserved(), early);
}

}  // namespace tiltflow
