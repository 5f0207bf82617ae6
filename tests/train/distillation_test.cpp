// Pre-training on the velocities of a teacher.
#include <cmath>

#include "tests/support.h"
#include "tests/train/small_model.h"
#include "tiltflow/io/safetensors.h"
#include "tiltflow/models/sit/sit.h"
#include "tiltflow/train/pretraining.h"
#include "tiltflow/train/pretraining_run.h"

namespace tiltflow {
namespace {

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
TEST(train_distillation, HasTheGradientOfFlowMatchingWithLessVariance) {
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

TEST(train_distillation, TeacherSeesTheLabelsBeforeDropout) {
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
    options.item = 2;
    options.label_dropout = dropout;
    FlowMatchingObjective objective(load(), make_path("linear"), data, options, 1, teacher);
    const std::int64_t pieces = objective.begin_step(0);
    double sum = 0;
    for (std::int64_t i = 0; i < pieces; ++i) sum += objective.item(i).loss.item<double>();
    return sum;
  };
  EXPECT_EQ(loss(0), 0) << "the model is its own teacher";
  EXPECT_GT(loss(1), 1e-6) << "the null class has to learn";
}

TEST(train_distillation, RefusesTeachersThatCannotTeach) {
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

}  // namespace tiltflow
