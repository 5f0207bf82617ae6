#include <malloc.h>

#include <cmath>

#include "tests/same_bytes.h"
#include "tests/support.h"
#include "tests/train/ink_run.h"
#include "tests/train/small_model.h"
#include "tests/train/small_pretraining.h"
#include "tiltflow/base/file.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/io/json_lines.h"
#include "tiltflow/io/safetensors.h"
#include "tiltflow/models/model_file.h"
#include "tiltflow/models/sit/sit.h"
#include "tiltflow/tensor/parallel.h"
#include "tiltflow/train/finetuning.h"
#include "tiltflow/train/memory_plan.h"
#include "tiltflow/train/pretraining.h"
#include "tiltflow/train/pretraining_run.h"

namespace tiltflow {
namespace {

using test::ink_run;
using test::kMonitorStreams;
using test::small_pretraining;
using test::small_pretraining_sit;
using test::two_class_pictures;

constexpr double kSpread = 0.4;

const std::vector<double> kMeans{-1.0, 0.5, 2.0};

// The exact velocity of x_1 ~ N(mean of the label, kSpread^2) on the linear path.
class ConditionalGaussian final : public VelocityField {
 public:
  at::Tensor velocity(const at::Tensor& x, const at::Tensor& t,
                      const Condition& condition) const override {
    const at::Tensor time = t.view({-1, 1});
    const at::Tensor mean =
        at::tensor(kMeans, x.options()).index_select(0, condition.labels).view({-1, 1});
    const at::Tensor variance = time.square() * (kSpread * kSpread) + (1 - time).square();
    const at::Tensor surprise = (x - time * mean) / variance;
    return mean + time * (kSpread * kSpread) * surprise - (1 - time) * surprise;
  }
};

// a + b x + c t, whatever the label.
class Affine final : public VelocityField {
 public:
  explicit Affine(at::Tensor weights) : weights_(std::move(weights)) {}
  at::Tensor velocity(const at::Tensor& x, const at::Tensor& t, const Condition&) const override {
    return weights_[0] + weights_[1] * x + weights_[2] * t.view({-1, 1});
  }

 private:
  at::Tensor weights_;
};

}  // namespace

// E[v(x_t | c) | x_t] = E[x_1 - x_0 | x_t]: both losses pull an unconditional student the same way.
TEST(train_pretraining, HasTheGradientOfFlowMatchingWithLessVariance) {
  constexpr std::int64_t n = 4000;
  const RandomStreams streams(5);
  const auto options = at::TensorOptions(at::kDouble);
  const at::Tensor labels = streams.integers(Purpose::kLabel, 0, 0, n, 3);
  const at::Tensor x_0 = streams.normal(Purpose::kPrior, 0, 0, 0, n, {1}).to(at::kDouble);
  const at::Tensor noise = streams.normal(Purpose::kPrior, 1, 0, 0, n, {1}).to(at::kDouble);
  const at::Tensor x_1 =
      at::tensor(kMeans, options).index_select(0, labels).view({-1, 1}) + kSpread * noise;
  const at::Tensor t = streams.uniform(Purpose::kTime, 0, 0, n).to(at::kDouble);
  const at::Tensor weights = at::tensor({0.3, -0.2, 0.1}, options);
  const auto path = make_path("linear");
  const FlowMatchingOptions flow_matching;
  const Condition unconditional;
  using Losses = std::function<at::Tensor(const VelocityField& student)>;
  const Losses plain = [&](const VelocityField& student) {
    return flow_matching_losses(student, *path, flow_matching, x_0, x_1, t, unconditional);
  };
  const auto distilled = [&](const at::Tensor& seen) -> Losses {
    return [&, seen](const VelocityField& student) {
      return distillation_losses(student, ConditionalGaussian(), *path, x_0, x_1, t, unconditional,
                                 {seen});
    };
  };
  // The losses are quadratic in the weights: two evaluations give each sample's derivative exactly.
  const auto derivative = [&](const Losses& losses, std::int64_t weight) {
    const at::Tensor shift = at::zeros({3}, options);
    shift[weight] = 0.5;
    return losses(Affine(weights + shift)) - losses(Affine(weights - shift));
  };
  const auto in_standard_errors = [&](const at::Tensor& difference) {
    const double error = difference.std().item<double>() / std::sqrt(static_cast<double>(n));
    return std::abs(difference.mean().item<double>()) / error;
  };
  const at::Tensor labels_of_others = labels.roll({1});
  for (std::int64_t weight = 0; weight < 3; ++weight) {
    const at::Tensor expected = derivative(plain, weight);
    const at::Tensor got = derivative(distilled(labels), weight);
    EXPECT_LT(in_standard_errors(expected - got), 3.5) << weight;
    EXPECT_LT(got.var().item<double>(), 0.8 * expected.var().item<double>()) << weight;
  }
  const at::Tensor wrong = derivative(plain, 1) - derivative(distilled(labels_of_others), 1);
  EXPECT_GT(in_standard_errors(wrong), 10) << "labels of other samples would not be noticed";
}

TEST(train_pretraining, TeacherSeesTheLabelsBeforeDropout) {
  const test::TempDir dir;
  test::save_small_sit(dir / "teacher.safetensors");
  const auto loss = [&](double dropout) {
    const auto load = [&] { return load_velocity_model(dir / "teacher.safetensors").model; };
    const std::shared_ptr<const VelocityModel> teacher = load();
    ImageDataset data;
    data.images =
        RandomStreams(2).uniform(Purpose::kExact, 0, 0, 8, {1, 8, 8}).mul(255).to(at::kByte);
    data.labels = at::arange(8).remainder(3);
    data.class_names = {"a", "b", "c"};
    FlowMatchingOptions options;
    options.batch = 4;
    options.micro_batch = 2;
    options.label_dropout = dropout;
    FlowMatchingObjective objective(load(), make_path("linear"), data, options, 1, teacher);
    const std::int64_t pieces = objective.begin_step(0);
    double sum = 0;
    for (std::int64_t i = 0; i < pieces; ++i) sum += objective.micro_batch(i).loss.item<double>();
    return sum;
  };
  EXPECT_EQ(loss(0), 0) << "the model is its own teacher";
  EXPECT_GT(loss(1), 1e-6) << "the null class has to learn";
}

TEST(train_pretraining, RefusesTeachersThatCannotTeach) {
  const test::TempDir dir;
  test::save_small_sit(dir / "teacher.safetensors");
  const auto refused = [&](const std::function<void(PretrainConfig&)>& change,
                           const std::string& words) {
    PretrainConfig c;
    c.model.args = {{"input_size", "8"},   {"patch_size", "4"},     {"in_channels", "1"},
                    {"hidden_size", "16"}, {"depth", "1"},          {"num_heads", "2"},
                    {"num_classes", "3"},  {"learn_sigma", "false"}};
    c.model.teacher = (dir / "teacher.safetensors").string();
    change(c);
    test::expect_error(ErrorKind::kConfig, words, [&] { set_up(c); });
  };
  refused(
      [](PretrainConfig& c) {
        c.kind = "classifier";
        c.model.args = {};
      },
      "model.teacher is for kind = \"flow\"");
  refused([](PretrainConfig& c) { c.model.prediction = "noise"; },
          "needs prediction = \"velocity\"");
  TensorFile curved = read_safetensors(dir / "teacher.safetensors");
  curved.metadata["tiltflow.path"] = "gvp";
  write_safetensors(dir / "curved.safetensors", curved.tensors, curved.metadata);
  refused([&](PretrainConfig& c) { c.model.teacher = (dir / "curved.safetensors").string(); },
          "has path gvp, the model linear");
  const auto teacher = load_velocity_model(dir / "teacher.safetensors").model;
  ImageDataset data;
  data.images = at::zeros({4, 1, 8, 8}, at::kByte);
  data.labels = at::zeros({4}, at::kLong);
  data.class_names = {"a"};
  SitConfig two;
  two.input_size = 8;
  two.patch_size = 4;
  two.in_channels = 1;
  two.hidden_size = 16;
  two.depth = 1;
  two.num_heads = 2;
  two.num_classes = 2;
  two.learn_sigma = false;
  const auto student = make_sit(two, init_sit(two, RandomStreams(1)));
  test::expect_error(ErrorKind::kConfig, "the teacher makes [1, 8, 8] of 3 classes",
                     [&] { require_fitting_data(*student, teacher.get(), data); });
}

TEST(train_pretraining, MirrorsHalfWhateverThePieces) {
  const at::Tensor x = kMonitorStreams.uniform(Purpose::kExact, 1, 0, 200, {1, 4, 6});
  const at::Tensor whole = randomly_flipped(x, kMonitorStreams, 3, 0);
  const at::Tensor parts =
      at::cat({randomly_flipped(x.narrow(0, 0, 70), kMonitorStreams, 3, 0),
               randomly_flipped(x.narrow(0, 70, 130), kMonitorStreams, 3, 70)});
  EXPECT_TRUE(at::equal(whole, parts));
  std::int64_t mirrored = 0;
  for (std::int64_t i = 0; i < 200; ++i) {
    const bool flipped = at::equal(whole[i], x[i].flip({2}));
    EXPECT_TRUE(flipped || at::equal(whole[i], x[i])) << i;
    mirrored += flipped;
  }
  EXPECT_NEAR(static_cast<double>(mirrored), 100, 4 * std::sqrt(50.0));
  EXPECT_FALSE(at::equal(whole, randomly_flipped(x, kMonitorStreams, 4, 0)))
      << "chosen anew in every step";
}

TEST(train_pretraining, ReachesEveryKindOfTraining) {
  const test::TempDir dir;
  const auto first_loss = [&](const std::string& kind, bool flip) {
    PretrainConfig c = small_pretraining();
    c.kind = kind;
    c.data.flip = flip;
    c.train.steps = 1;
    c.evaluation.every = 0;
    if (kind == "flow") c.model.args = to_args(small_pretraining_sit());
    if (kind == "classifier") {
      c.model.args = {{"input_size", "8"}, {"num_classes", "2"}};
      c.noise = 0;
      c.shift = 0;
    }
    if (kind == "gan") {
      c.model.args = {{"image_size", "8"},    {"num_classes", "2"},     {"upsamplings", "1"},
                      {"base_channels", "4"}, {"d_base_channels", "4"}, {"feat_dim", "8"},
                      {"z_dim", "4"}};
    }
    PretrainSetup setup{c, nullptr, two_class_pictures(32), two_class_pictures(0)};
    if (kind == "flow") {
      setup.model =
          make_sit(small_pretraining_sit(), init_sit(small_pretraining_sit(), RandomStreams(1)));
    }
    tiltflow::Run run(dir / cat(kind, flip), "x", false);
    pretrain(std::move(setup), run);
    return read_json_lines(dir / cat(kind, flip) / "metrics.jsonl").back().at("loss").get<double>();
  };
  for (const std::string kind : {"flow", "classifier", "gan"}) {
    EXPECT_NE(first_loss(kind, true), first_loss(kind, false)) << kind;
  }
}

// Losses, weights, time intervals and gradients of SiT for every path, prediction and weighting.
TEST(train_pretraining, LossesEqualTheOfficialOnes) {
  const ParameterSet g = read_safetensors(test::golden("transport_losses.safetensors")).tensors;
  const auto loaded =
      load_velocity_model(test::golden("sit_a_ema.safetensors"), {{"num_heads", "4"}});
  const at::Tensor a = loaded.model->parameters().at("blocks.0.attn.qkv.bias");
  const at::Tensor b = loaded.model->parameters().at("final_layer.linear.bias");
  a.set_requires_grad(true);
  b.set_requires_grad(true);
  int compared = 0;
  for (const auto& [key, expected] : g) {
    const std::vector<std::string> part = split(key, '.');
    if (part.size() != 4 || part[3] != "loss") continue;
    const auto lower = [](std::string text) {
      for (char& c : text) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
      return text;
    };
    const auto path = make_path(lower(part[0]));
    FlowMatchingOptions options;
    options.prediction = part[1];
    options.loss_weight = lower(part[2]);
    const std::string stem = key.substr(0, key.size() - 4);
    const at::Tensor t = training_times(*path, options, g.at("u"));
    EXPECT_LT((t - g.at(stem + "t")).abs().max().item<double>(), 1e-6) << key;
    const at::Tensor losses =
        flow_matching_losses(*loaded.model, *path, options, g.at("x0"), g.at("x1"), t, {g.at("y")});
    // fp32 of the reference cancels in VP's coefficients near t = 1
    EXPECT_LT(test::relative_error(losses, expected), part[0] == "VP" ? 2e-4 : 1e-5) << key;
    const auto gradients = torch::autograd::grad({losses.mean()}, {a, b});
    EXPECT_LT(test::relative_error(gradients[0], g.at(stem + "grad.blocks.0.attn.qkv.bias")), 2e-4)
        << key;
    EXPECT_LT(test::relative_error(gradients[1], g.at(stem + "grad.final_layer.linear.bias")), 2e-4)
        << key;
    ++compared;
  }
  EXPECT_EQ(compared, 21);
}

TEST(train_pretraining, FlowMatchingLearnsAndSamplesEveryImageOnce) {
  ImageDataset data;
  data.images = at::zeros({64, 1, 8, 8}, at::kByte);
  data.images.narrow(0, 0, 32).fill_(255);
  data.labels = at::cat({at::zeros({32}, at::kLong), at::ones({32}, at::kLong)});
  data.class_names = {"white", "black"};
  BatchOrder order(64, 16, RandomStreams(1));
  at::Tensor seen = at::zeros({64}, at::kLong);
  for (std::int64_t step = 0; step < 4; ++step) {
    seen.index_add_(0, order.indices(step), at::ones({16}, at::kLong));
  }
  EXPECT_TRUE(at::equal(seen, at::ones({64}, at::kLong)));

  const SitConfig c = test::small_pretraining_sit();
  const test::TempDir dir;
  tiltflow::Run run(dir / "r", "", false);
  FlowMatchingObjective objective(make_sit(c, init_sit(c, RandomStreams(1))), make_path("linear"),
                                  data, {16, 8, 0.1, "uniform"}, 1);
  TrainConfig config;
  config.steps = 60;
  config.optimizer.learning_rate = 1e-2;
  train(config, objective, run, {});
  const auto lines = read_json_lines(dir / "r/metrics.jsonl");
  EXPECT_LT(lines.back()["loss"].get<double>(), 0.6 * lines.front()["loss"].get<double>());
}

// Added blocks are the identity at the start; anything else that does not fit is refused.
TEST(train_pretraining, ADeeperModelStartsAsTheShallowerOne) {
  const test::TempDir dir;
  ink_run(dir);  // writes base.safetensors, one block
  write_file_atomic(
      dir / "train-images-idx3-ubyte",
      std::string("\0\0\x08\x03\0\0\0\x02\0\0\0\x08\0\0\0\x08", 16) + std::string(2 * 8 * 8, '\0'));
  write_file_atomic(dir / "train-labels-idx1-ubyte",
                    std::string("\0\0\x08\x01\0\0\0\x02\0\x01", 10));
  PretrainConfig config;
  config.data.path = dir.path().string();
  config.model.init = (dir / "base.safetensors").string();
  config.model.args = {{"input_size", "8"},   {"patch_size", "4"},     {"in_channels", "1"},
                       {"hidden_size", "16"}, {"depth", "3"},          {"num_heads", "2"},
                       {"num_classes", "3"},  {"learn_sigma", "false"}};
  const PretrainSetup setup = set_up(config);
  const auto shallow = load_velocity_model(config.model.init, {}).model;
  const at::Tensor x = RandomStreams(4).normal(Purpose::kProbe, 0, 0, 0, 5, {1, 8, 8});
  const at::Tensor t = at::linspace(0, 1, 5);
  const Condition labels{at::tensor(std::vector<std::int64_t>{0, 1, 2, 3, 0}, at::kLong)};
  EXPECT_LT((setup.model->velocity(x, t, labels) - shallow->velocity(x, t, labels))
                .abs()
                .max()
                .item<double>(),
            1e-6)
      << "rounding of fp32 products";
  EXPECT_GT(setup.model->parameters().numel(), shallow->parameters().numel());
  config.model.args["hidden_size"] = "32";
  EXPECT_THROW(set_up(config), Error);
}

}  // namespace tiltflow
