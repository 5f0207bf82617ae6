// Class labels of samples, as functions of the sample's index: the same whatever the batch or the
// number of processes.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <string>
#include <vector>

#include "tiltflow/config/fields.h"
#include "tiltflow/tensor/random.h"

namespace tiltflow {

// Labels of samples first..first+n, [n]; undefined for unconditional.
using LabelSource = std::function<at::Tensor(std::int64_t first, std::int64_t n)>;
LabelSource no_labels();
LabelSource fixed_label(std::int64_t label);
LabelSource uniform_labels(const RandomStreams& streams, std::uint32_t step, std::int64_t classes);
LabelSource listed_labels(
    std::vector<std::int64_t> labels);  // sample i has label i modulo the length of the list
// Class c with probability weights[c] / sum. Throws kConfig.
LabelSource weighted_labels(const RandomStreams& streams, std::uint32_t step,
                            const std::vector<double>& weights);

// The [labels] section.
struct LabelConfig {
  std::string kind =
      "none";  // none: unconditional; uniform: over the classes; fixed; list; file; weighted
  std::int64_t label = 0;          // fixed
  std::vector<std::int64_t> list;  // list
  std::string file;                // file: whole numbers separated by white space or commas
  std::vector<double> weights;     // weighted: one per class
  double dropout =
      0;  // share of samples made unconditional (null class), for model and reward alike
};
void bind(Fields& f, LabelConfig& c);
// `step` keys random labels; a list starts at element `offset`. Throws kConfig for labels outside
// [0, classes] (classes is the null class, refused as a fixed label), kBadFile for an unreadable
// file.
LabelSource make_labels(const LabelConfig& config, std::int64_t classes,
                        const RandomStreams& streams, std::uint32_t step, std::int64_t offset);
// The same with the file read: make_labels then needs no disk.
LabelConfig with_file_read(LabelConfig config);
// Numbers separated by commas or white space. Throw kConfig naming `what`.
std::vector<double> parse_numbers(const std::string& text, const std::string& what);
std::vector<std::int64_t> parse_labels(const std::string& text,
                                       const std::string& what);  // whole ones

}  // namespace tiltflow
