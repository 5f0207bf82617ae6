#include "tiltflow/sampler/labels.h"

#include <cmath>

#include "tiltflow/base/count.h"
#include "tiltflow/base/error.h"
#include "tiltflow/base/file.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/tensor/aten.h"

namespace tiltflow {

LabelSource no_labels() {
  return [](std::int64_t, std::int64_t) { return at::Tensor(); };
}

LabelSource fixed_label(std::int64_t label) {
  return [label](std::int64_t, std::int64_t n) { return at::full({n}, label, at::kLong); };
}

LabelSource uniform_labels(const RandomStreams& streams, std::uint32_t step, std::int64_t classes) {
  return [=](std::int64_t first, std::int64_t n) { return streams.integers(Purpose::kLabel, step, first, n, classes); };
}

LabelSource listed_labels(std::vector<std::int64_t> labels) {
  if (labels.empty()) fail(ErrorKind::kConfig, "the list of labels is empty");
  const at::Tensor list = at::tensor(labels, at::kLong);
  return [list](std::int64_t first, std::int64_t n) { return list.index_select(0, at::arange(first, first + n).remainder(list.size(0))); };
}

LabelSource weighted_labels(const RandomStreams& streams, std::uint32_t step, const std::vector<double>& weights) {
  const at::Tensor w = at::tensor(weights, at::kDouble);
  if (weights.empty() || w.min().item<double>() < 0 || !(w.sum().item<double>() > 0)) fail(ErrorKind::kConfig, "label weights must be non-negative and not all zero");
  const at::Tensor edges = (w / w.sum()).cumsum(0);
  const std::int64_t last = w.nonzero().max().item<std::int64_t>();
  return [=](std::int64_t first, std::int64_t n) {
    return at::searchsorted(edges, streams.uniform(Purpose::kLabel, step, first, n, {}, at::kDouble), false, true).clamp_max(last);
  };
}

void bind(Fields& f, LabelConfig& c) {
  f.value("kind", c.kind, "none (unconditional), uniform, fixed, list, file or weighted", one_of({"none", "uniform", "fixed", "list", "file", "weighted"}));
  f.value("label", c.label, "fixed: the label", at_least_integer(0));
  f.value("list", c.list, "list: labels taken in turn");
  f.value("file", c.file, "file: a text file of labels, taken in turn");
  f.value("weights", c.weights, "weighted: one weight per class");
  f.value("dropout", c.dropout, "share of samples made unconditional, for model and reward alike", between(0, 1));
}

namespace {

LabelSource with_dropout(LabelSource source, double share, std::int64_t null_label, const RandomStreams& streams, std::uint32_t step) {
  if (share <= 0) return source;
  return [=](std::int64_t first, std::int64_t n) {
    return source(first, n).masked_fill(streams.uniform(Purpose::kLabelDropout, step, first, n) < share, null_label);
  };
}

LabelSource chosen_labels(const LabelConfig& c, std::int64_t classes, const RandomStreams& streams, std::uint32_t step, std::int64_t offset) {
  if (classes < 1) fail(ErrorKind::kConfig, cat("labels.kind = \"", c.kind, "\" needs a class-conditional model"));
  const auto require = [&](std::int64_t label, const std::string& what) {
    if (label < 0 || label > classes) fail(ErrorKind::kConfig, cat(what, " ", label, " is out of range: classes 0..", classes - 1, ", ", classes, " for none"));
  };
  if (c.kind == "fixed" && c.label >= classes) fail(ErrorKind::kConfig, cat("labels.label ", c.label, " is out of range, the model has ", counted(classes, "class", "classes")), "labels.kind = \"none\" is unconditional");
  if (c.kind == "uniform") return uniform_labels(streams, step, classes);
  if (c.kind == "fixed") {
    return fixed_label(c.label);
  }
  if (c.kind == "weighted") {
    if (static_cast<std::int64_t>(c.weights.size()) != classes) fail(ErrorKind::kConfig, cat(c.weights.size(), " label weights for ", counted(classes, "class", "classes")));
    return weighted_labels(streams, step, c.weights);
  }
  const std::vector<std::int64_t> list = with_file_read(c).list;
  for (const std::int64_t label : list) require(label, c.file.empty() ? "label" : cat(c.file, ": label"));
  const LabelSource source = listed_labels(list);
  return [source, offset](std::int64_t first, std::int64_t n) { return source(first + offset, n); };
}

}  // namespace

LabelSource make_labels(const LabelConfig& c, std::int64_t classes, const RandomStreams& streams, std::uint32_t step, std::int64_t offset) {
  return c.kind == "none" ? no_labels() : with_dropout(chosen_labels(c, classes, streams, step, offset), c.dropout, classes, streams, step);
}

LabelConfig with_file_read(LabelConfig config) {
  if (config.kind != "file") return config;
  config.list = parse_labels(read_file(config.file, std::size_t{1} << 28), config.file);
  config.kind = "list";
  return config;
}

std::vector<std::int64_t> parse_labels(const std::string& text, const std::string& what) {
  std::vector<std::int64_t> out;
  for (const double value : parse_numbers(text, what)) {
    if (value != std::floor(value) || std::abs(value) > 1e15) fail(ErrorKind::kConfig, cat(what, ": ", value, " is not a label"), "labels are whole numbers");
    out.push_back(static_cast<std::int64_t>(value));
  }
  return out;
}

std::vector<double> parse_numbers(const std::string& text, const std::string& what) {
  std::vector<double> out;
  const char* at = text.c_str();
  while (true) {
    while (*at == ' ' || *at == ',' || *at == '\n' || *at == '\r' || *at == '\t') ++at;
    if (!*at) break;
    char* end = nullptr;
    out.push_back(std::strtod(at, &end));
    if (end == at || !std::isfinite(out.back())) fail(ErrorKind::kConfig, cat(what, ": '", std::string(at).substr(0, 20), "' is not a number"), "numbers are separated by commas or white space");
    at = end;
  }
  if (out.empty()) fail(ErrorKind::kConfig, cat(what, ": no numbers"));
  return out;
}

}  // namespace tiltflow
