// What a pre-training run shows on the way, always of the averaged weights: the loss on held-out
// data with noise and times that stay the same, and samples from noise and labels that stay the
// same.
#pragma once

#include <map>
#include <string>

#include "tiltflow/io/dataset.h"
#include "tiltflow/sampler/labels.h"
#include "tiltflow/train/gan_training.h"
#include "tiltflow/train/pretraining.h"
#include "tiltflow/train/run.h"

namespace tiltflow {

struct PretrainEvaluation {
  std::int64_t every = 500;
  std::int64_t samples = 1024;  // steps between evaluations, 0 = never; held-out items of the loss
  std::int64_t sampler_steps = 20;  // flow: of the pictures
};
void bind(Fields& f, PretrainEvaluation& c);

// validation_loss of at most `samples` items, with its standard error; nothing when `held_out` is
// empty. Times are stratified over the items. Cost: one forward an item.
std::map<std::string, double> flow_validation(const VelocityField& network, const Path& path,
                                              const FlowMatchingOptions& options,
                                              const ImageDataset& held_out, std::int64_t classes,
                                              std::int64_t samples, const RandomStreams& streams);
// validation_loss (cross-entropy of clean pictures) and validation_accuracy, with standard errors.
std::map<std::string, double> classifier_validation(const Classifier& classifier,
                                                    const ImageDataset& held_out,
                                                    std::int64_t samples);
// validation_discriminator_loss, validation_real_score: of held-out pictures, beside
// discriminator_loss and real_score of the training's.
std::map<std::string, double> gan_validation(const Discriminator& discriminator,
                                             const Generator& generator,
                                             const ImageDataset& held_out, std::int64_t samples,
                                             const RandomStreams& streams);

// Labels of a grid of pictures, eight a class: all classes, or eight of them evenly chosen, then
// `unconditional` rows of the null class. Undefined without classes.
at::Tensor grid_labels(std::int64_t classes, std::int64_t unconditional);
// Grid of samples in [0, 1] of a flow from keyed noise by Heun's method, [C, H', W']; undefined
// when samples are no pictures.
at::Tensor flow_pictures(std::shared_ptr<const VelocityField> network, const VelocityModel& model,
                         std::shared_ptr<const Path> path, const std::string& prediction,
                         bool unconditional, std::int64_t steps, const RandomStreams& streams);

// The test split with the training split's class numbers: folders are numbered in their order,
// which differs when one is missing. Throws kBadFile.
ImageDataset with_classes_of(const ImageDataset& train, ImageDataset test);
// Pictures and labels kept out of training: the set's own test split, or `share` of the training
// items, which are then removed from it. Empty when there is neither. Throws kConfig.
ImageDataset held_out_data(const DatasetConfig& config, double share, ImageDataset& training,
                           const RandomStreams& streams);
std::vector<std::int64_t> class_counts(const ImageDataset& data);
std::string class_counts_text(const std::vector<std::int64_t>& counts,
                              const std::vector<std::string>& names);

}  // namespace tiltflow
