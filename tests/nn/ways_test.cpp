// The ways of doing one thing agree with double precision, whichever is chosen; the rule that
// chooses; what is kept between processes.
#include "tiltflow/nn/ways.h"

#include <sys/stat.h>

#include <cmath>
#include <cstdlib>
#include <fstream>

#include "tests/support.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/models/precision_choice.h"
#include "tiltflow/models/runtime_config.h"
#include "tiltflow/nn/fused.h"
#include "tiltflow/nn/instruction_sets.h"
#include "tiltflow/nn/kernels/kernels.h"
#include "tiltflow/nn/machine_choices.h"
#include "tiltflow/tensor/aten.h"
#include "tiltflow/tensor/random.h"

namespace tiltflow {
namespace {

at::Tensor drawn(std::uint32_t key, at::IntArrayRef shape) {
  return RandomStreams(6).normal(Purpose::kProbe, key, 0, 0, 1, shape)[0];
}

// Chooses the option of this name wherever a slot of that kind has it.
Ways everywhere(WaySlot::Kind kind, const std::string& option) {
  Ways out;
  for (std::size_t i = 0; i < way_slots().size(); ++i) {
    const WaySlot& slot = way_slots()[i];
    for (const std::uint8_t o : slot.options) {
      if (slot.kind == kind && option_name(slot, o) == option) out.choose(i, o);
    }
  }
  return out;
}

std::vector<at::Tensor> with_gradients(
    const std::function<at::Tensor(const std::vector<at::Tensor>&)>& function,
    std::vector<at::Tensor> inputs) {
  const at::AutoGradMode grad(true);
  for (at::Tensor& input : inputs) input = input.detach().set_requires_grad(true);
  const at::Tensor y = function(inputs);
  std::vector<at::Tensor> out =
      torch::autograd::grad({y}, inputs, {drawn(9, y.sizes()).to(y.scalar_type())});
  out.insert(out.begin(), y.detach());
  return out;
}

void expect_close(const std::vector<at::Tensor>& found, const std::vector<at::Tensor>& expected,
                  double tolerance, const std::string& what) {
  for (std::size_t i = 0; i < found.size(); ++i) {
    EXPECT_LT(test::relative_error(found[i], expected[i]), tolerance) << what << ", result " << i;
  }
}

}  // namespace

// Fixed rules come back, and the cache of the user is left alone.
class nn_ways : public ::testing::Test {
 protected:
  nn_ways() {
    const char* before = std::getenv("XDG_CACHE_HOME");
    if (before) cache_before_ = before;
    ::setenv("XDG_CACHE_HOME", (folder_ / "cache").c_str(), 1);
    follow_choices({});
  }
  ~nn_ways() override {
    if (cache_before_.empty()) {
      ::unsetenv("XDG_CACHE_HOME");
    } else {
      ::setenv("XDG_CACHE_HOME", cache_before_.c_str(), 1);
    }
    set_ways({});
    follow_choices({});
  }
  test::TempDir folder_;
  std::string cache_before_;
};

namespace {

// Text in which every choice is the last option there is, which no measurement would find.
std::string odd_choices() {
  MachineChoices odd;
  odd.speeds = {131, 2.7};
  for (std::size_t i = 0; i < way_slots().size(); ++i) {
    odd.ways.choose(i, way_slots()[i].options.back());
  }
  return to_text(machine_key(), odd);
}

}  // namespace

TEST_F(nn_ways, EveryWayOfAProductAgreesWithDouble) {
  const auto in_double = [](const std::vector<at::Tensor>& in) {
    return at::linear(in[0], in[1], in[2]);
  };
  for (const auto& [rows, in, out] :
       {std::tuple{7, 40, 96}, std::tuple{200, 96, 40}, std::tuple{130, 300, 260}}) {
    const std::vector<at::Tensor> inputs{drawn(1, {1, rows, in}), drawn(2, {out, in}),
                                         drawn(3, {out})};
    std::vector<at::Tensor> exact;
    for (const at::Tensor& input : inputs) exact.push_back(input.to(at::kDouble));
    const auto expected = with_gradients(in_double, exact);
    for (const char* option : {"library", "onednn", "packed"}) {
      set_ways(everywhere(WaySlot::Kind::kProduct, option));
      const auto trained = [](const std::vector<at::Tensor>& v) {
        return fused::linear({v[1], v[2]}, v[0], true);
      };
      expect_close(with_gradients(trained, inputs), expected, 1e-5,
                   cat(option, ", trained, ", rows, " rows"));
      const Linear frozen{inputs[1], inputs[2]};
      const auto input_only = [&](const std::vector<at::Tensor>& v) {
        return fused::linear(frozen, v[0], true);
      };
      expect_close(with_gradients(input_only, {inputs[0]}), {expected[0], expected[1]}, 1e-5,
                   cat(option, ", frozen, ", rows, " rows"));
    }
  }
}

TEST_F(nn_ways, EveryWayOfAttentionAndOfThePassesAgreesWithDouble) {
  const std::int64_t heads = 2;
  const auto in_double = [&](const std::vector<at::Tensor>& in) {
    const auto parts = in[0].view({2, 49, 3, heads, 24}).permute({2, 0, 3, 1, 4}).unbind(0);
    const at::Tensor scores = at::matmul(parts[0], parts[1].transpose(-2, -1)) / std::sqrt(24.0);
    return at::matmul(scores.softmax(-1), parts[2]).transpose(1, 2).reshape({2, 49, heads * 24});
  };
  const at::Tensor packed = drawn(4, {2, 49, 3 * heads * 24});
  const auto expected = with_gradients(in_double, {packed.to(at::kDouble)});
  for (const char* option : {"own", "flash", "math"}) {
    set_ways(everywhere(WaySlot::Kind::kAttention, option));
    expect_close(
        with_gradients(
            [&](const std::vector<at::Tensor>& in) { return fused::attention(in[0], heads); },
            {packed}),
        expected, 2e-5, option);
  }
  const at::Tensor x = drawn(5, {2, 9, 40});
  const at::Tensor row = drawn(6, {2, 40});
  const at::Tensor scale = drawn(7, {2, 40});
  const auto gelu =
      with_gradients([](const std::vector<at::Tensor>& in) { return at::gelu(in[0], "tanh"); },
                     {x.to(at::kDouble)});
  const auto norm = with_gradients(
      [](const std::vector<at::Tensor>& in) {
        return at::layer_norm(in[0], {40}, {}, {}, 1e-6) * (in[2].unsqueeze(1) + 1) +
               in[1].unsqueeze(1);
      },
      {x.to(at::kDouble), row.to(at::kDouble), scale.to(at::kDouble)});
  for (const char* option : {"own", "library"}) {
    set_ways(everywhere(WaySlot::Kind::kPass, option));
    expect_close(
        with_gradients([](const std::vector<at::Tensor>& in) { return fused::gelu(in[0]); }, {x}),
        gelu, 3e-6, option);
    expect_close(with_gradients(
                     [](const std::vector<at::Tensor>& in) {
                       return fused::modulated_norm(in[0], in[1], in[2], at::kFloat);
                     },
                     {x, row, scale}),
                 norm, 3e-6, option);
  }
}

// Gradients of the attention of every instruction set; sizes that fill registers or leave a
// remainder.
TEST_F(nn_ways, EveryInstructionSetsAttentionAgreesWithDouble) {
  const kernels::UsableKernels& usable = kernels::usable_kernels();
  for (const auto& [tokens, head] : {std::pair{49, 32}, std::pair{70, 17}, std::pair{5, 3}}) {
    const std::int64_t t = tokens;
    const std::int64_t d = head;
    const std::int64_t h = 2;
    const at::Tensor packed = drawn(10, {1, t, 3 * h * d});
    const auto in_double = [&](const std::vector<at::Tensor>& in) {
      const auto parts = in[0].view({1, t, 3, h, d}).permute({2, 0, 3, 1, 4}).unbind(0);
      return at::matmul((at::matmul(parts[0], parts[1].transpose(-2, -1)) /
                         std::sqrt(static_cast<double>(d)))
                            .softmax(-1),
                        parts[2])
          .transpose(1, 2)
          .reshape({1, t, h * d});
    };
    const auto expected = with_gradients(in_double, {packed.to(at::kDouble)});
    const at::Tensor cotangent = drawn(9, expected[0].sizes());
    for (int i = 0; i < usable.count; ++i) {
      const kernels::Table<float>& table = usable.tables[i]->full;
      const at::Tensor out = at::empty({1, t, h * d});
      const at::Tensor sums = at::empty({1, h, t});
      const at::Tensor scratch = at::empty({table.attention_scratch(t, d)});
      const at::Tensor gradient = at::empty_like(packed);
      table.attention(packed.const_data_ptr<float>(), out.data_ptr<float>(), sums.data_ptr<float>(),
                      scratch.data_ptr<float>(), 0, h, t, h, d);
      table.attention_backward(packed.const_data_ptr<float>(), out.data_ptr<float>(),
                               cotangent.data_ptr<float>(), sums.data_ptr<float>(),
                               gradient.data_ptr<float>(), scratch.data_ptr<float>(), 0, h, t, h,
                               d);
      expect_close({out, gradient}, expected, 1e-5,
                   cat(usable.tables[i]->name, ", ", t, " tokens"));
    }
  }
}

TEST_F(nn_ways, TheFirstOptionIsKeptUnlessAnotherIsClearlyFaster) {
  EXPECT_EQ(preferred({1.0, 0.98, 2.0}), 0u);
  EXPECT_EQ(preferred({1.0, 0.96, 0.90}), 2u);
  EXPECT_EQ(preferred({1.0}), 0u);
}

TEST_F(nn_ways, BfloatPaysWhereItsProductsAreClearlyFaster) {
  EXPECT_TRUE(bf16_pays({100, 120}));
  EXPECT_FALSE(bf16_pays({100, 119}));
  EXPECT_FALSE(bf16_pays({131, 2.7}));
  EXPECT_FALSE(bf16_pays({0, 0}));  // not measured
  EXPECT_EQ(slow_bf16({131, 2.7}),
            "bf16 products are 49 times slower than fp32 ones on this processor");
  EXPECT_EQ(slow_bf16({131, 100}),
            "bf16 products are 1.3 times slower than fp32 ones on this processor");
  EXPECT_EQ(slow_bf16({131, 140}), "");
  EXPECT_EQ(slow_bf16({0, 0}), "");
}

TEST_F(nn_ways, SizesFindTheirClass) {
  for (std::size_t i = 0; i < way_slots().size();
       ++i) {  // the sizes at which a slot is measured belong to it
    const WaySlot& slot = way_slots()[i];
    Ways changed;
    changed.choose(i, slot.options.back());
    const auto looked_up = [&](const Ways& w) -> int {
      if (slot.kind == WaySlot::Kind::kProduct) {
        return static_cast<int>(w.product(slot.half, slot.use, slot.rows, slot.width, slot.width));
      }
      if (slot.kind == WaySlot::Kind::kAttention) {
        return static_cast<int>(w.attention(slot.half, slot.rows, slot.width));
      }
      return static_cast<int>(w.pass(slot.half, slot.pass));
    };
    EXPECT_EQ(looked_up(changed), slot.options.back()) << slot.name;
    EXPECT_EQ(looked_up(Ways()), slot.rule) << slot.name;
  }
  EXPECT_THROW(Ways().choose(0, 77), Error);
}

TEST_F(nn_ways, ChoicesAreKeptAndFollowed) {
  const MachineKey key = machine_key();
  const std::filesystem::path cache = choices_file(key);
  EXPECT_EQ(cache.parent_path(), folder_ / "cache/tiltflow");
  machine_choices({.speeds = true});  // measured, and kept
  ASSERT_TRUE(std::filesystem::is_regular_file(cache));
  EXPECT_TRUE(read_choices(cache, key));
  EXPECT_FALSE(read_choices(cache, key)->ways.complete(false));  // nobody asked

  write_file_atomic(cache, odd_choices());
  follow_choices({});
  const MachineChoices& cached = machine_choices({.speeds = true, .fp32_ways = true});
  EXPECT_EQ(cached.speeds.bf16, 2.7);
  EXPECT_EQ(ways().attention(false, 49, 32), AttentionWay::kMath);
  const std::filesystem::path run = folder_ / "kernels.json";
  record_choices(run);
  EXPECT_EQ(read_file(run), odd_choices());

  std::filesystem::remove(cache);  // a continued run needs no cache
  set_ways({});
  follow_choices(run);
  machine_choices({.fp32_ways = true});
  EXPECT_EQ(ways().attention(false, 49, 32), AttentionWay::kMath);
  EXPECT_FALSE(std::filesystem::exists(cache));

  MachineKey other = key;
  other["processor"] = "another";
  EXPECT_NE(choices_file(other), cache);
  EXPECT_FALSE(choices_from_text(odd_choices(), other));
}

TEST_F(nn_ways, DamagedAndForeignFilesAreIgnored) {
  const MachineKey key = machine_key();
  const std::string good = odd_choices();
  ASSERT_TRUE(choices_from_text(good, key));
  const auto replaced = [&](const std::string& from, const std::string& to) {
    std::string text = good;
    const std::size_t at = text.find(from);
    EXPECT_NE(at, std::string::npos) << from;
    return text.replace(at, from.size(), to);
  };
  for (const std::string& bad :
       {std::string(), std::string("{"), std::string("[]"), std::string("null"),
        std::string(60000, '['), good.substr(0, good.size() / 2),
        replaced("\"math\"", "\"packed\""), replaced("\"math\"", "7"), replaced("GELU", "gelu"),
        replaced("131", "-131"), replaced("131", "1e999"), replaced("131.0", "\"fast\""),
        replaced("\"ways\"", "\"way\""), replaced(key.at("libtorch"), "0.0.0")}) {
    EXPECT_FALSE(choices_from_text(bad, key)) << bad.substr(0, 60);
  }
  const std::filesystem::path pipe = folder_ / "pipe";
  const std::filesystem::path large = folder_ / "large";
  ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);  // opening it would wait for ever
  EXPECT_FALSE(read_choices(pipe, key));
  write_file_atomic(large, good + std::string(1 << 17, ' '));
  EXPECT_FALSE(read_choices(large, key));
  EXPECT_FALSE(read_choices(folder_.path(), key));
  EXPECT_FALSE(read_choices(folder_ / "missing", key));
  // A damaged file is written anew; where no folder can be made, everything works without one.
  make_directories(choices_file(key).parent_path());
  write_file_atomic(choices_file(key), "{ damaged");
  EXPECT_GT(machine_choices({.speeds = true}).speeds.fp32, 0);
  EXPECT_TRUE(read_choices(choices_file(key), key));
  ::setenv("XDG_CACHE_HOME", (large / "below a file").c_str(), 1);
  follow_choices({});
  EXPECT_GT(machine_choices({.speeds = true}).speeds.fp32, 0);
  ::setenv("XDG_CACHE_HOME", "relative", 1);  // the standard: such a value counts as none
  EXPECT_TRUE(choices_file(key).empty() || choices_file(key).is_absolute());
}

TEST_F(nn_ways, InstructionSets) {
  for (const InstructionSet& set : instruction_sets()) {
    if (!set.available) {
      test::expect_error(ErrorKind::kUsage, cat("no ", set.name),
                         [&] { restrict_environment(set.name); });
    }
  }
  test::expect_error(ErrorKind::kUsage, "'avx3' is unknown", [] { restrict_environment("avx3"); });
}

}  // namespace tiltflow
