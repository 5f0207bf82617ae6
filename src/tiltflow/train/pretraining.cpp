#include "tiltflow/train/pretraining.h"

#include <algorithm>
#include <mutex>

#include "tiltflow/base/count.h"
#include "tiltflow/base/error.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/tensor/aten.h"
#include "tiltflow/tensor/device.h"
#include "tiltflow/tensor/parallel.h"

namespace tiltflow {
namespace {

ParameterSet trainable_of(const VelocityModel& model) {
  ParameterSet out;
  for (const auto& [name, tensor] : model.parameters()) {
    if (model.is_buffer(name)) continue;
    at::Tensor weight = tensor;
    weight.set_requires_grad(true);
    out.add(name, weight);
  }
  return out;
}

ParameterSet with_gradients(ParameterSet parameters) { return clone(parameters, true); }

}  // namespace

BatchOrder::BatchOrder(std::int64_t data_size, std::int64_t batch, RandomStreams streams)
    : size_(data_size), batch_(batch), streams_(streams) {
  if (batch > data_size) {
    fail(ErrorKind::kConfig,
         cat("batch ", batch, " exceeds the ", data_size, " training examples"));
  }
}

at::Tensor BatchOrder::indices(std::int64_t step) {
  const std::int64_t per_epoch = size_ / batch_;
  const std::int64_t epoch = step / per_epoch;
  if (epoch != epoch_) {
    order_ = streams_.permutation(Purpose::kData, static_cast<std::uint32_t>(epoch), size_);
    epoch_ = epoch;
  }
  const auto begin = order_.begin() + (step % per_epoch) * batch_;
  return at::tensor(std::vector<std::int64_t>(begin, begin + batch_), at::kLong);
}

at::Tensor randomly_flipped(const at::Tensor& pictures, const RandomStreams& streams,
                            std::uint32_t step, std::int64_t first) {
  constexpr std::uint32_t kFlip = 7;  // substep that nothing else of this purpose uses
  const at::Tensor flips =
      streams.normal(Purpose::kAugment, step, kFlip, first, pictures.size(0), {}) > 0;
  return at::where(flips.view({-1, 1, 1, 1}), pictures.flip({3}), pictures);
}

at::Tensor training_times(const Path& path, const FlowMatchingOptions& options,
                          const at::Tensor& u) {
  const bool vp = path.name() == "vp";
  const bool plain = options.prediction == "velocity";
  const double inset = options.epsilon >= 0 ? options.epsilon : vp ? 1e-5 : plain ? 0 : 1e-3;
  const double begin = vp ? 0 : inset;
  const double end = 1 - inset;
  return u * (end - begin) + begin;
}

at::Tensor flow_matching_losses(const VelocityField& network, const Path& path,
                                const FlowMatchingOptions& options, const at::Tensor& x_0,
                                const at::Tensor& x_1, const at::Tensor& t,
                                const Condition& condition) {
  const std::vector<PathPoint> points = path_points(path, t);
  const auto c = [&](double PathPoint::* member) { return path_coefficient(points, member, x_1); };
  const at::Tensor beta = c(&PathPoint::beta);
  const at::Tensor x_t = c(&PathPoint::alpha) * x_1 + beta * x_0;
  const at::Tensor out = network.velocity(x_t, t, condition);
  if (options.prediction == "velocity") {
    return (out - (c(&PathPoint::d_alpha) * x_1 + c(&PathPoint::d_beta) * x_0))
        .square()
        .flatten(1)
        .mean(1);
  }
  const at::Tensor loss =
      (options.prediction == "noise" ? out - x_0 : beta * out + x_0).square().flatten(1).mean(1);
  if (options.loss_weight == "none") return loss;
  std::vector<double> weights;
  for (std::int64_t i = 0; i < x_1.size(0); ++i) {
    const PathPoint& p = points[points.size() == 1 ? 0 : static_cast<std::size_t>(i)];
    const double ratio = p.eta() / p.beta;
    weights.push_back(options.loss_weight == "velocity" ? ratio * ratio : ratio / p.beta);
  }
  return loss * at::tensor(weights, at::kDouble).to(loss.scalar_type());
}

at::Tensor distillation_losses(const VelocityField& network, const VelocityField& teacher,
                               const Path& path, const at::Tensor& x_0, const at::Tensor& x_1,
                               const at::Tensor& t, const Condition& condition,
                               const Condition& teacher_condition) {
  const std::vector<PathPoint> points = path_points(path, t);
  const at::Tensor x_t = path_coefficient(points, &PathPoint::alpha, x_1) * x_1 +
                         path_coefficient(points, &PathPoint::beta, x_1) * x_0;
  at::Tensor target;
  {
    const at::NoGradGuard no_grad;
    target = teacher.velocity(x_t, t, teacher_condition);
  }
  return (network.velocity(x_t, t, condition) - target).square().flatten(1).mean(1);
}

void require_fitting_data(const VelocityModel& model, const VelocityModel* teacher,
                          const ImageDataset& data) {
  const std::vector<std::int64_t> shape = data.shape();
  if (shape != model.sample_shape()) {
    fail(ErrorKind::kConfig,
         cat("the data are ", shape_text(shape), ", the model makes ",
             shape_text(model.sample_shape())),
         "adapt model.args (input_size, in_channels)");
  }
  if (teacher != nullptr &&
      (teacher->sample_shape() != shape || teacher->classes() != model.classes())) {
    fail(ErrorKind::kConfig, cat("the teacher makes ", shape_text(teacher->sample_shape()), " of ",
                                 counted(teacher->classes(), "class", "classes"), ", the model ",
                                 shape_text(shape), " of ", model.classes()));
  }
  const std::int64_t largest = data.labels.max().item<std::int64_t>();
  if (model.classes() > 0 && largest >= model.classes()) {
    fail(ErrorKind::kConfig, cat("the data have labels up to ", largest, ", the model has ",
                                 counted(model.classes(), "class", "classes")));
  }
}

void require_fitting_data(const ClassifierConfig& config, const ImageDataset& data) {
  if (data.classes() != config.num_classes) {
    fail(ErrorKind::kConfig, cat("the data have ", counted(data.classes(), "class", "classes"),
                                 ", the classifier ", config.num_classes));
  }
}

FlowMatchingObjective::FlowMatchingObjective(std::unique_ptr<VelocityModel> model,
                                             std::shared_ptr<const Path> path, ImageDataset data,
                                             FlowMatchingOptions options, std::uint64_t seed,
                                             std::shared_ptr<const VelocityModel> teacher)
    : model_(std::move(model)),
      teacher_(std::move(teacher)),
      path_(std::move(path)),
      data_(std::move(data)),
      options_(std::move(options)),
      streams_(seed),
      order_(data_.size(), options_.batch, streams_),
      trainable_(trainable_of(*model_)) {
  require_fitting_data(*model_, teacher_.get(), data_);
}

std::int64_t FlowMatchingObjective::begin_step(std::int64_t step) {
  step_ = step;
  indices_ = order_.indices(step);
  return (options_.batch + options_.micro_batch - 1) / options_.micro_batch;
}

LossReport FlowMatchingObjective::micro_batch(std::int64_t i) {
  const std::int64_t begin = i * options_.micro_batch;
  const std::int64_t end = std::min(options_.batch, begin + options_.micro_batch);
  const std::int64_t n = end - begin;
  const auto step = static_cast<std::uint32_t>(step_);
  const at::Tensor indices = indices_.narrow(0, begin, n);
  at::Tensor data = data_.states(indices, [&] {
    return streams_.normal(Purpose::kAugment, step, 0, begin, n, model_->sample_shape());
  });
  if (options_.flip) data = randomly_flipped(data, streams_, step, begin);
  const at::Tensor noise =
      streams_.normal(Purpose::kPrior, step, 0, begin, n, model_->sample_shape());
  const at::Tensor u = options_.time_sampling == "logit-normal"
                           ? streams_.normal(Purpose::kTime, step, 0, begin, n, {}).sigmoid()
                           : streams_.uniform(Purpose::kTime, step, begin, n);
  const at::Tensor t = training_times(*path_, options_, u);
  Condition condition, undropped;
  if (model_->classes() > 0) {
    undropped.labels = data_.labels.index_select(0, indices);
    const at::Tensor dropped =
        streams_.uniform(Purpose::kLabel, step, begin, n) < options_.label_dropout;
    condition.labels =
        at::where(dropped, at::full({1}, model_->classes(), at::kLong), undropped.labels);
  }
  const at::Tensor losses =
      teacher_ != nullptr
          ? distillation_losses(*model_, *teacher_, *path_, noise, data, t, condition, undropped)
          : flow_matching_losses(*model_, *path_, options_, noise, data, t, condition);
  return {losses.sum() / static_cast<double>(options_.batch), {}};
}

ClassificationObjective::ClassificationObjective(ClassifierConfig config, ImageDataset data,
                                                 ClassificationOptions options, std::uint64_t seed)
    : classifier_(config,
                  with_gradients(to_compute_device(init_classifier(config, RandomStreams(seed))))),
      data_(std::move(data)),
      options_(options),
      streams_(seed),
      order_(data_.size(), options.batch, streams_) {
  require_fitting_data(config, data_);
}

std::int64_t ClassificationObjective::begin_step(std::int64_t step) {
  step_ = step;
  indices_ = order_.indices(step);
  return (options_.batch + options_.micro_batch - 1) / options_.micro_batch;
}

LossReport ClassificationObjective::micro_batch(std::int64_t i) {
  const std::int64_t begin = i * options_.micro_batch;
  const std::int64_t end = std::min(options_.batch, begin + options_.micro_batch);
  const std::int64_t n = end - begin;
  const auto step = static_cast<std::uint32_t>(step_);
  const at::Tensor indices = indices_.narrow(0, begin, n);
  at::Tensor images = data_.batch(indices);
  if (options_.flip) images = randomly_flipped(images, streams_, step, begin);
  if (options_.shift > 0) {
    const at::Tensor dy =
        streams_.integers(Purpose::kAugment, 2 * step, begin, n, 2 * options_.shift + 1);
    const at::Tensor dx =
        streams_.integers(Purpose::kAugment, 2 * step + 1, begin, n, 2 * options_.shift + 1);
    const at::Tensor padded = at::constant_pad_nd(
        images, {options_.shift, options_.shift, options_.shift, options_.shift});
    std::vector<at::Tensor> moved;
    for (std::int64_t j = 0; j < n; ++j) {
      moved.push_back(padded[j]
                          .narrow(1, dy[j].item<std::int64_t>(), images.size(2))
                          .narrow(2, dx[j].item<std::int64_t>(), images.size(3)));
    }
    images = at::stack(moved);
  }
  if (options_.noise > 0) {
    const at::Tensor deviation =
        streams_.uniform(Purpose::kAugment, step, begin, n).mul(options_.noise).view({-1, 1, 1, 1});
    images = images + deviation * streams_.normal(Purpose::kAugment, step, 1, begin, n,
                                                  images.sizes().slice(1));
  }
  const at::Tensor logits = classifier_.logits(images);
  const at::Tensor labels = data_.labels.index_select(0, indices);
  LossReport report;
  report.loss = at::cross_entropy_loss(logits, labels, {}, at::Reduction::Sum, -100,
                                       options_.label_smoothing) /
                static_cast<double>(options_.batch);
  report.metrics.add("train_accuracy", (logits.argmax(1) == labels).sum().item<double>(),
                     static_cast<double>(n));
  return report;
}

double accuracy(const Classifier& classifier, const ImageDataset& data) {
  const at::NoGradGuard no_grad;
  std::int64_t correct = 0;
  std::mutex mutex;
  parallel_chunks(data.size(), 250, [&](std::int64_t begin, std::int64_t end) {
    const at::Tensor logits = classifier.logits(data.batch(at::arange(begin, end)));
    const std::int64_t hits =
        (logits.argmax(1) == data.labels.narrow(0, begin, end - begin)).sum().item<std::int64_t>();
    const std::lock_guard lock(mutex);
    correct += hits;
  });
  return static_cast<double>(correct) / static_cast<double>(data.size());
}

}  // namespace tiltflow
