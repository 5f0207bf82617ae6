#include "tiltflow/sampler/labels.h"

#include <cmath>
#include <cstdlib>
#include <string_view>

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
  return [=](std::int64_t first, std::int64_t n) {
    return streams.integers(Purpose::kLabel, step, first, n, classes);
  };
}

LabelSource listed_labels(std::vector<std::int64_t> labels) {
  if (labels.empty()) fail(ErrorKind::kConfig, "the list of labels is empty");
  const at::Tensor list = at::tensor(labels, at::kLong);
  return [list](std::int64_t first, std::int64_t n) {
    return list.index_select(0, at::arange(first, first + n).remainder(list.size(0)));
  };
}

LabelSource weighted_labels(const RandomStreams& streams, std::uint32_t step,
                            const std::vector<double>& weights) {
  const at::Tensor w = at::tensor(weights, at::kDouble);
  if (weights.empty() || w.min().item<double>() < 0 || !(w.sum().item<double>() > 0)) {
    fail(ErrorKind::kConfig, "label weights must be non-negative and not all zero");
  }
  const at::Tensor edges = (w / w.sum()).cumsum(0);
  const std::int64_t last = w.nonzero().max().item<std::int64_t>();
  return [=](std::int64_t first, std::int64_t n) {
    return at::searchsorted(edges,
                            streams.uniform(Purpose::kLabel, step, first, n, {}, at::kDouble),
                            false, true)
        .clamp_max(last);
  };
}

void bind(Fields& f, LabelConfig& c) {
  f.value("kind", c.kind, "none (unconditional), uniform, fixed, list, file or weighted",
          one_of({"none", "uniform", "fixed", "list", "file", "weighted"}));
  f.value("label", c.label, "fixed: the label", at_least_integer(0));
  f.value("list", c.list, "list: labels taken in turn");
  f.path("file", c.file, PathKind::kAll, "file: a text file of labels, taken in turn");
  f.value("weights", c.weights, "weighted: one weight per class");
  f.value("dropout", c.dropout, "share of samples made unconditional, for model and reward alike",
          between(0, 1));
}

namespace {

constexpr std::size_t kMaxLabelFile = std::size_t{1} << 28;

struct Word {
  std::string text;
  std::int64_t line = 1;
};

std::string_view without_byte_order_mark(std::string_view text, const std::string& what) {
  constexpr std::string_view kUtf8 = "\xef\xbb\xbf";
  const bool utf16 = starts_with(text, "\xff\xfe") || starts_with(text, "\xfe\xff");
  if (utf16) fail(ErrorKind::kConfig, cat(what, ": UTF-16 text"), "save it as UTF-8");
  return starts_with(text, kUtf8) ? text.substr(kUtf8.size()) : text;
}

// What stands between commas and white space. Throws kConfig when that is nothing.
std::vector<Word> words_of(const std::string& all, const std::string& what) {
  constexpr std::string_view kSeparators = " ,\t\r\n";
  std::vector<Word> out;
  std::int64_t line = 1;
  bool inside = false;
  for (const char c : without_byte_order_mark(all, what)) {
    const bool separates = kSeparators.find(c) != std::string_view::npos;
    if (!separates && !inside) out.push_back({"", line});
    if (!separates) out.back().text += c;
    inside = !separates;
    if (c == '\n') ++line;
  }
  if (out.empty()) fail(ErrorKind::kConfig, cat(what, ": no numbers"));
  return out;
}

std::string place(const std::string& what, std::int64_t line) {
  return starts_with(what, "--") ? what : cat(what, ", line ", line);
}

// "labels.txt, line 3: 'x' is not a label"
[[noreturn]] void refuse(const Word& word, const std::string& what, const char* expected,
                         const std::string& hint) {
  std::string shown = word.text.substr(0, 20);
  for (char& c : shown) c = c >= ' ' && c < 127 ? c : '?';
  fail(ErrorKind::kConfig, cat(place(what, word.line), ": '", shown, "' is not a ", expected),
       hint);
}

double number_of(const Word& word, const std::string& what) {
  char* end = nullptr;
  const double value = std::strtod(word.text.c_str(), &end);
  if (end == word.text.c_str() || *end != 0 || !std::isfinite(value)) {
    refuse(word, what, "number", "numbers are separated by commas or white space");
  }
  return value;
}

std::int64_t label_of(const Word& word, const std::string& what) {
  const double value = number_of(word, what);
  if (value != std::floor(value) || std::abs(value) > 1e15) {
    refuse(word, what, "label", "labels are whole numbers");
  }
  return static_cast<std::int64_t>(value);
}

LabelSource with_dropout(LabelSource source, double share, std::int64_t null_label,
                         const RandomStreams& streams, std::uint32_t step) {
  if (share <= 0) return source;
  return [=](std::int64_t first, std::int64_t n) {
    return source(first, n).masked_fill(
        streams.uniform(Purpose::kLabelDropout, step, first, n) < share, null_label);
  };
}

// "labels.txt, line 3: " for the label at `index` of a file; "" without a file.
std::string place_in_file(const std::string& file, std::size_t index) {
  if (file.empty()) return "";
  return cat(file, ", line ", words_of(read_file(file, kMaxLabelFile), file).at(index).line, ": ");
}

void require_in_range(const LabelConfig& c, std::int64_t classes) {
  for (std::size_t i = 0; i < c.list.size(); ++i) {
    if (c.list[i] >= 0 && c.list[i] <= classes) continue;
    fail(ErrorKind::kConfig,
         cat(place_in_file(c.file, i), "label ", c.list[i], " is out of range: classes 0..",
             classes - 1, ", ", classes, " for none"));
  }
}

LabelSource chosen_labels(const LabelConfig& c, std::int64_t classes, const RandomStreams& streams,
                          std::uint32_t step, std::int64_t offset) {
  if (classes < 1) {
    fail(ErrorKind::kConfig, cat("labels.kind = \"", c.kind, "\" needs a class-conditional model"));
  }
  if (c.kind == "fixed" && c.label >= classes) {
    fail(ErrorKind::kConfig,
         cat("labels.label ", c.label, " is out of range, the model has ",
             counted(classes, "class", "classes")),
         "labels.kind = \"none\" is unconditional");
  }
  if (c.kind == "uniform") return uniform_labels(streams, step, classes);
  if (c.kind == "fixed") {
    return fixed_label(c.label);
  }
  if (c.kind == "weighted") {
    if (static_cast<std::int64_t>(c.weights.size()) != classes) {
      fail(ErrorKind::kConfig,
           cat(c.weights.size(), " label weights for ", counted(classes, "class", "classes")));
    }
    return weighted_labels(streams, step, c.weights);
  }
  const LabelConfig read = with_file_read(c);
  require_in_range(read, classes);
  const LabelSource source = listed_labels(read.list);
  return [source, offset](std::int64_t first, std::int64_t n) { return source(first + offset, n); };
}

}  // namespace

LabelSource make_labels(const LabelConfig& c, std::int64_t classes, const RandomStreams& streams,
                        std::uint32_t step, std::int64_t offset) {
  return c.kind == "none" ? no_labels()
                          : with_dropout(chosen_labels(c, classes, streams, step, offset),
                                         c.dropout, classes, streams, step);
}

LabelConfig with_file_read(LabelConfig config) {
  if (config.kind != "file") return config;
  config.list.clear();
  for (const Word& word : words_of(read_file(config.file, kMaxLabelFile), config.file)) {
    config.list.push_back(label_of(word, config.file));
  }
  config.kind = "list";
  return config;
}

std::vector<std::int64_t> parse_labels(const std::string& text, const std::string& what) {
  std::vector<std::int64_t> out;
  for (const Word& word : words_of(text, what)) out.push_back(label_of(word, what));
  return out;
}

std::vector<double> parse_numbers(const std::string& text, const std::string& what) {
  std::vector<double> out;
  for (const Word& word : words_of(text, what)) out.push_back(number_of(word, what));
  return out;
}

}  // namespace tiltflow
