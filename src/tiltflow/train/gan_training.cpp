#include "tiltflow/train/gan_training.h"

#include <algorithm>

#include "tiltflow/base/error.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/tensor/aten.h"
#include "tiltflow/tensor/device.h"
#include "tiltflow/tensor/process_group.h"

namespace tiltflow {
namespace {

const std::string kGenerator = "generator.";
const std::string kDiscriminator = "discriminator.";

}  // namespace

void require_gan_data(const GanConfig& c, const ImageDataset& data) {
  const std::vector<std::int64_t> made{c.channels, c.image_size, c.image_size};
  if (data.latents() || data.shape() != made) {
    fail(ErrorKind::kConfig,
         cat("the data are ", shape_text(data.shape()), ", the generator makes ", shape_text(made)),
         "adapt model.args (image_size, channels, upsamplings) or data.size");
  }
  if (const auto largest = data.labels.max().item<std::int64_t>(); largest >= c.num_classes) {
    fail(ErrorKind::kConfig, cat("the data have labels up to ", largest, ", the model has ",
                                 c.num_classes, " classes"));
  }
}

GanObjective::GanObjective(const GanConfig& config, ImageDataset data, GanTrainingOptions options,
                           std::uint64_t seed, MatmulPrecision precision)
    : options_(options),
      streams_(seed),
      generator_(make_gan_generator(config, to_compute_device(init_gan_generator(config, streams_)),
                                    precision)),
      discriminator_(config, to_compute_device(init_discriminator(config, streams_)), precision),
      data_(std::move(data)),
      order_(data_.size(), options.batch, streams_),
      statistics_(buffers_of(*generator_)) {
  if (world_size() > 1) {
    fail(ErrorKind::kConfig,
         "a GAN is trained in one process: its batch statistics are not shared between processes");
  }
  require_gan_data(config, data_);
  for (const auto& [name, tensor] : generator_->parameters()) {
    if (!generator_->is_buffer(name)) {
      trainable_.add(kGenerator + name, at::Tensor(tensor).set_requires_grad(true));
    }
  }
  for (const auto& [name, tensor] : discriminator_.parameters()) {
    if (!discriminator_.is_buffer(name)) {
      trainable_.add(kDiscriminator + name, at::Tensor(tensor).set_requires_grad(true));
    }
  }
}

std::int64_t GanObjective::begin_step(std::int64_t step) {
  step_ = step;
  const std::int64_t cycle = options_.discriminator_steps + 1;
  generator_turn_ = step % cycle == cycle - 1;
  indices_ = order_.indices(step / cycle);
  if (!generator_turn_) discriminator_.update_spectral_norm();
  const std::int64_t items = (options_.batch + options_.micro_batch - 1) / options_.micro_batch;
  statistics_.begin(items);
  return items;
}

bool GanObjective::trains(const std::string& name) const {
  return starts_with(name, generator_turn_ ? kGenerator : kDiscriminator);
}

LossReport GanObjective::micro_batch(std::int64_t i) {
  const std::int64_t begin = i * options_.micro_batch;
  const std::int64_t n = std::min(options_.micro_batch, options_.batch - begin);
  const double share = static_cast<double>(n) / static_cast<double>(options_.batch);
  const at::Tensor indices = indices_.narrow(0, begin, n);
  const at::Tensor labels = data_.labels.index_select(0, indices);
  const at::Tensor z = streams_.normal(Purpose::kPrior, static_cast<std::uint32_t>(step_), 0, begin,
                                       n, generator_->noise_shape());
  Generator::TrainingOutput made;
  {
    const at::AutoGradMode grad(generator_turn_);
    made = generator_->generate_in_training(z, labels);
  }
  statistics_.propose(i, std::move(made.buffers));
  const at::Tensor fake = discriminator_.score(made.samples, labels);
  LossReport report;
  if (generator_turn_) {
    const at::Tensor loss = -fake.mean();
    report.metrics.add("generator_loss", loss.item<double>() * static_cast<double>(n),
                       static_cast<double>(n));
    report.loss = loss * share;
    return report;
  }
  at::Tensor pictures = data_.batch(indices);
  if (options_.flip) {
    pictures = randomly_flipped(pictures, streams_, static_cast<std::uint32_t>(step_), begin);
  }
  const at::Tensor real = discriminator_.score(pictures * 2 - 1, labels);
  const at::Tensor loss = hinge_losses(real, fake).discriminator;
  report.metrics.add("discriminator_loss", loss.item<double>() * static_cast<double>(n),
                     static_cast<double>(n));
  report.metrics.add("real_score", real.sum().item<double>(), static_cast<double>(n));
  report.metrics.add("fake_score", fake.sum().item<double>(), static_cast<double>(n));
  report.loss = loss * share;
  return report;
}

void GanObjective::end_step(std::map<std::string, double>&) { statistics_.take(); }

ParameterSet GanObjective::state() const {
  ParameterSet out;
  for (const auto& [name, tensor] : statistics_.buffers()) out.add(kGenerator + name, tensor);
  for (const auto& [name, tensor] : discriminator_.parameters()) {
    if (discriminator_.is_buffer(name)) out.add(kDiscriminator + name, tensor);
  }
  return out;
}

void GanObjective::restore(const ParameterSet& stored) {
  assign(state(), stored, "statistics of the checkpoint");
}

std::unique_ptr<Generator> GanObjective::averaged(const ParameterSet& average) const {
  ParameterSet all;
  for (const auto& [name, tensor] : generator_->parameters()) {
    all.add(name, (average.contains(kGenerator + name) ? average.at(kGenerator + name) : tensor)
                      .detach()
                      .clone());
  }
  return generator_->rebind(std::move(all));
}

}  // namespace tiltflow
