#include "tiltflow/train/pretraining_monitor.h"

#include <algorithm>
#include <cmath>

#include "tiltflow/base/error.h"
#include "tiltflow/base/log.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/flow/prediction.h"
#include "tiltflow/io/image.h"
#include "tiltflow/sampler/sample.h"
#include "tiltflow/tensor/aten.h"
#include "tiltflow/tensor/parallel.h"

namespace tiltflow {
namespace {

constexpr std::int64_t kPiece = 64;
constexpr std::int64_t kColumns = 8;
constexpr std::int64_t kLargestGrid = 10;
constexpr std::int64_t kPrime = 7919;

// A mean over items with its standard error.
void add_mean(std::map<std::string, double>& metrics, const std::string& name,
              const at::Tensor& values) {
  const at::Tensor x = values.to(at::kDouble);
  metrics[name] = x.mean().item<double>();
  metrics[name + "_se"] =
      x.size(0) > 1 ? x.std().item<double>() / std::sqrt(static_cast<double>(x.size(0))) : 0;
}

// values[i] = work(i), in pieces on all cores.
at::Tensor in_pieces(std::int64_t n,
                     const std::function<at::Tensor(std::int64_t begin, std::int64_t end)>& work) {
  const at::Tensor out = at::empty({n});
  parallel_chunks(n, kPiece, [&](std::int64_t begin, std::int64_t end) {
    const at::NoGradGuard no_grad;
    out.narrow(0, begin, end - begin).copy_(work(begin, end));
  });
  return out;
}

// The items of an evaluation: all, or as many spread evenly over the set.
at::Tensor chosen_items(const ImageDataset& data, std::int64_t samples) {
  const std::int64_t n = std::min(samples, data.size());
  return (at::arange(n, at::kDouble) * (static_cast<double>(data.size()) / static_cast<double>(n)))
      .floor()
      .to(at::kLong);
}

ImageDataset subset(const ImageDataset& data, const at::Tensor& indices) {
  ImageDataset out = data;
  const auto of = [&](const at::Tensor& x) { return x.defined() ? x.index_select(0, indices) : x; };
  out.images = of(data.images);
  out.mean = of(data.mean);
  out.deviation = of(data.deviation);
  out.labels = of(data.labels);
  if (data.disk.files.empty()) return out;
  out.disk.files.clear();
  for (std::int64_t i = 0; i < indices.size(0); ++i) {
    out.disk.files.push_back(
        data.disk.files[static_cast<std::size_t>(indices[i].item<std::int64_t>())]);
  }
  return out;
}

}  // namespace

void bind(Fields& f, PretrainEvaluation& c) {
  f.value("every", c.every,
          "steps between evaluations of the averaged weights (and after the last one); 0 = never",
          at_least_integer(0));
  f.value("samples", c.samples, "held-out items of the validation loss, at most",
          at_least_integer(1));
  f.value("sampler_steps", c.sampler_steps, "flow: steps of Heun's method for the pictures",
          at_least_integer(1));
}

std::map<std::string, double> flow_validation(const VelocityField& network, const Path& path,
                                              const FlowMatchingOptions& options,
                                              const ImageDataset& held_out, std::int64_t classes,
                                              std::int64_t samples, const RandomStreams& streams) {
  std::map<std::string, double> out;
  if (held_out.labels.numel() == 0) return out;
  const at::Tensor items = chosen_items(held_out, samples);
  const std::int64_t total = items.size(0);
  const std::vector<std::int64_t> shape = held_out.shape();
  const at::Tensor losses = in_pieces(total, [&](std::int64_t begin, std::int64_t end) {
    const std::int64_t n = end - begin;
    const at::Tensor indices = items.narrow(0, begin, n);
    const at::Tensor data = held_out.states(indices, [&] {
      return streams.normal(Purpose::kAugment, RunKey::kValidation, 0, begin, n, shape);
    });
    const at::Tensor noise =
        streams.normal(Purpose::kPrior, RunKey::kValidation, 0, begin, n, shape);
    // One time in each of `total` equal parts of [0, 1], in an order that mixes them over the
    // classes.
    const at::Tensor place = (at::arange(begin, end) * kPrime).remainder(total);
    at::Tensor u = (place + streams.uniform(Purpose::kTime, RunKey::kValidation, begin, n)) /
                   static_cast<double>(total);
    if (options.time_sampling == "logit-normal") {
      u = streams.normal(Purpose::kTime, RunKey::kValidation, 0, begin, n, {}).sigmoid();
    }
    Condition condition;
    if (classes > 0) {
      const at::Tensor dropped =
          streams.uniform(Purpose::kLabel, RunKey::kValidation, begin, n) < options.label_dropout;
      condition.labels = at::where(dropped, at::full({1}, classes, at::kLong),
                                   held_out.labels.index_select(0, indices));
    }
    return flow_matching_losses(network, path, options, noise, data,
                                training_times(path, options, u.to(at::kFloat)), condition);
  });
  add_mean(out, "validation_loss", losses);
  return out;
}

std::map<std::string, double> classifier_validation(const Classifier& classifier,
                                                    const ImageDataset& held_out,
                                                    std::int64_t samples) {
  std::map<std::string, double> out;
  if (held_out.labels.numel() == 0) return out;
  const at::Tensor items = chosen_items(held_out, samples);
  const at::Tensor hits = at::empty({items.size(0)});
  const at::Tensor losses = in_pieces(items.size(0), [&](std::int64_t begin, std::int64_t end) {
    const at::Tensor indices = items.narrow(0, begin, end - begin);
    const at::Tensor labels = held_out.labels.index_select(0, indices);
    const at::Tensor logits = classifier.logits(held_out.batch(indices));
    hits.narrow(0, begin, end - begin).copy_(logits.argmax(1) == labels);
    return at::cross_entropy_loss(logits, labels, {}, at::Reduction::None);
  });
  add_mean(out, "validation_loss", losses);
  add_mean(out, "validation_accuracy", hits);
  return out;
}

std::map<std::string, double> gan_validation(const Discriminator& discriminator,
                                             const Generator& generator,
                                             const ImageDataset& held_out, std::int64_t samples,
                                             const RandomStreams& streams) {
  std::map<std::string, double> out;
  if (held_out.labels.numel() == 0) return out;
  const at::Tensor items = chosen_items(held_out, samples);
  const at::Tensor real = at::empty({items.size(0)});
  const at::Tensor losses = in_pieces(items.size(0), [&](std::int64_t begin, std::int64_t end) {
    const std::int64_t n = end - begin;
    const at::Tensor indices = items.narrow(0, begin, n);
    const at::Tensor labels = held_out.labels.index_select(0, indices);
    const at::Tensor scores = discriminator.score(held_out.batch(indices) * 2 - 1, labels);
    const at::Tensor z =
        streams.normal(Purpose::kPrior, RunKey::kValidation, 0, begin, n, generator.noise_shape());
    real.narrow(0, begin, n).copy_(scores);
    return at::relu(1 - scores) +
           at::relu(1 + discriminator.score(generator.generate(z, labels), labels));
  });
  add_mean(out, "validation_discriminator_loss", losses);
  add_mean(out, "validation_real_score", real);
  return out;
}

at::Tensor grid_labels(std::int64_t classes, std::int64_t unconditional) {
  if (classes <= 0) return {};
  const std::int64_t rows = std::min(classes, kLargestGrid);
  std::vector<std::int64_t> labels;
  for (std::int64_t i = 0; i < rows * kColumns; ++i) {
    labels.push_back(i / kColumns * classes / rows);
  }
  labels.insert(labels.end(), static_cast<std::size_t>(unconditional * kColumns), classes);
  return at::tensor(labels, at::kLong);
}

at::Tensor flow_pictures(std::shared_ptr<const VelocityField> network, const VelocityModel& model,
                         std::shared_ptr<const Path> path, const std::string& prediction,
                         bool unconditional, std::int64_t steps, const RandomStreams& streams) {
  if (!is_picture(model.sample_shape())) return {};
  const at::NoGradGuard no_grad;
  const at::Tensor labels = grid_labels(model.classes(), unconditional ? 2 : 0);
  SamplerConfig sampler;
  sampler.name = "ode-heun";
  sampler.steps = steps;
  sampler.prediction = prediction;
  DrawOptions options;
  options.n = labels.defined() ? labels.size(0) : kColumns * kColumns;
  options.step = RunKey::kValidationPictures;
  const LabelSource source = labels.defined()
                                 ? LabelSource([labels](std::int64_t first, std::int64_t n) {
                                     return labels.narrow(0, first, n);
                                   })
                                 : no_labels();
  const PredictionField field(std::move(network), path, prediction);
  const at::Tensor x =
      draw(field, sampler, *path, model.sample_shape(), streams, source, options).x;
  return enlarge(image_grid(((x + 1) / 2).clamp(0, 1), static_cast<int>(kColumns)),
                 x.size(3) < 64 ? 2 : 1);
}

// The numbers of the training split's classes; folders are numbered in their order, which differs
// when one is missing. Throws kBadFile.
ImageDataset with_classes_of(const ImageDataset& train, ImageDataset test) {
  if (test.shape() != train.shape()) {
    fail(ErrorKind::kBadFile,
         cat("the test pictures are ", shape_text(test.shape()), ", the training pictures ",
             shape_text(train.shape())),
         "give a size (data.size) to crop and resize all of them");
  }
  std::vector<std::int64_t> numbers;
  for (const std::string& name : test.class_names) {
    const auto found = std::find(train.class_names.begin(), train.class_names.end(), name);
    if (found == train.class_names.end()) {
      fail(ErrorKind::kBadFile,
           cat("class '", name, "' of the test pictures is not among the training pictures"));
    }
    numbers.push_back(found - train.class_names.begin());
  }
  test.labels = at::tensor(numbers, at::kLong).index_select(0, test.labels);
  test.class_names = train.class_names;
  return test;
}

ImageDataset held_out_data(const DatasetConfig& config, double share, ImageDataset& training,
                           const RandomStreams& streams) {
  if (share > 0) {
    const auto count =
        static_cast<std::int64_t>(std::llround(share * static_cast<double>(training.size())));
    if (count < 1 || count >= training.size()) {
      fail(ErrorKind::kConfig, cat("data.held_out = ", share, " of ", training.size(),
                                   " items leaves nothing on one side"));
    }
    const at::Tensor order = at::tensor(
        streams.permutation(Purpose::kData, RunKey::kHeldOutSplit, training.size()), at::kLong);
    const auto part = [&](std::int64_t begin, std::int64_t n) {
      return subset(training, std::get<0>(order.narrow(0, begin, n).sort()));
    };
    ImageDataset out = part(0, count);
    training = part(count, training.size() - count);
    return out;
  }
  try {
    if (has_test_split(config)) return with_classes_of(training, read_dataset(config, "test"));
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::kBadFile) throw;
    log_info(cat("no validation: ",
                 error.what()));  // pictures beside the training are no reason to refuse it
  }
  ImageDataset none;
  none.labels = at::empty({0}, at::kLong);
  none.class_names = training.class_names;
  return none;
}

std::vector<std::int64_t> class_counts(const ImageDataset& data) {
  const at::Tensor counts = at::bincount(data.labels, {}, data.classes()).contiguous();
  return {counts.const_data_ptr<std::int64_t>(),
          counts.const_data_ptr<std::int64_t>() + counts.numel()};
}

std::string class_counts_text(const std::vector<std::int64_t>& counts,
                              const std::vector<std::string>& names) {
  constexpr std::size_t kAll = 20;
  std::vector<std::int64_t> sorted = counts;
  std::sort(sorted.begin(), sorted.end());
  if (sorted.empty()) return "no classes";
  if (counts.size() > kAll) {
    return cat(counts.size(), " classes of ", sorted.front(), " to ", sorted.back(),
               " items, median ", sorted[sorted.size() / 2]);
  }
  std::vector<std::string> parts;
  for (std::size_t i = 0; i < counts.size(); ++i) {
    parts.push_back(cat(i < names.size() ? names[i] : std::to_string(i), ": ", counts[i]));
  }
  return join(parts, ", ");
}

}  // namespace tiltflow
