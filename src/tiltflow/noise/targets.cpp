#include "tiltflow/noise/targets.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <optional>
#include <string_view>

#include "tiltflow/base/count.h"
#include "tiltflow/base/error.h"
#include "tiltflow/base/file.h"
#include "tiltflow/base/log.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/tensor/aten.h"

namespace tiltflow {
namespace {

namespace fs = std::filesystem;

std::function<at::Tensor()> picture_in(const fs::path& file, const PictureOptions& options) {
  return [file, options] { return state_of_bytes(read_picture(file, options)); };
}

std::vector<Target> from_files(const PictureList& list, const PictureOptions& options) {
  std::vector<Target> out;
  for (std::size_t i = 0; i < list.files.size(); ++i) {
    out.push_back({static_cast<std::int64_t>(i), list.files[i].string(),
                   picture_in(list.files[i], options), [label = list.labels[i]] { return label; }});
  }
  return out;
}

std::optional<std::int64_t> label_in(const nlohmann::json& entry) {
  const auto found = entry.find("label");
  if (found == entry.end() || !found->is_number()) return std::nullopt;
  if (found->is_number_integer()) return found->get<std::int64_t>();
  const double value = found->get<double>();  // 3.0, as tables with gaps write whole numbers
  if (value != std::floor(value) || std::abs(value) > 1e15) return std::nullopt;
  return static_cast<std::int64_t>(value);
}

// One line of pairs.jsonl. A broken line is a bad target, not a bad list.
Target target_of_line(std::int64_t id, const std::string& line, const std::string& where,
                      const fs::path& folder, const PictureOptions& options) {
  const nlohmann::json entry = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (!entry.is_object() || !entry.contains("image") || !entry["image"].is_string()) {
    const auto broken = [where]() -> at::Tensor {
      fail(ErrorKind::kBadFile, where + ": expected a JSON object with a string \"image\"");
    };
    return {id, where, broken, [] { return std::int64_t{0}; }};
  }
  const fs::path given = entry["image"].get<std::string>();
  const auto label = [where, found = label_in(entry)]() -> std::int64_t {
    if (!found) {
      fail(ErrorKind::kBadFile, where + ": no whole number \"label\", which this generator needs");
    }
    return *found;
  };
  return {id, given.string(), picture_in(given.is_absolute() ? given : folder / given, options),
          label};
}

std::vector<Target> from_pairs(const fs::path& folder, const PictureOptions& options) {
  const fs::path list = folder / "pairs.jsonl";
  std::vector<Target> out;
  std::int64_t number = 0;
  for (const std::string& line : split(read_file(list, std::size_t{1} << 30), '\n')) {
    ++number;
    const std::string_view content = number == 1 && starts_with(line, "\xef\xbb\xbf")
                                         ? std::string_view(line).substr(3)
                                         : std::string_view(line);
    if (content.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    out.push_back(target_of_line(static_cast<std::int64_t>(out.size()), std::string(content),
                                 cat(list.string(), ":", number), folder, options));
  }
  return out;
}

}  // namespace

void bind(Fields& f, TargetsConfig& c) {
  f.value("format", c.format,
          "idx (MNIST files), cifar (binary records), folder (one sub-folder a class) or pairs "
          "(pairs.jsonl with image and label)",
          one_of({"idx", "cifar", "folder", "pairs"}));
  f.path("path", c.path, PathKind::kAll, "folder that holds the target images");
  f.value("split", c.split, "train or test", one_of({"train", "test"}));
  f.value("size", c.size,
          "crop and resize every picture to its central square of this size; 0: as they are",
          at_least_integer(0));
  f.value("alpha", c.alpha,
          "folder, pairs: what becomes of transparent pixels: drop (their colour stays, as in "
          "torchvision), white or black (composed on it), refuse",
          one_of({"drop", "white", "black", "refuse"}));
  f.value("first", c.first, "first target", at_least_integer(0));
  f.value("count", c.count, "number of targets; 0 = all from the first on", at_least_integer(0));
}

std::vector<Target> list_targets(const TargetsConfig& c) {
  if (c.path.empty()) {
    fail(ErrorKind::kConfig, "targets.path is missing",
         "the folder of the target images, e.g. targets.path = \"data/mnist\"");
  }
  std::vector<Target> all;
  DatasetConfig dataset{c.format, c.path, c.size};
  dataset.alpha = c.alpha;
  const PictureOptions options = picture_options(dataset);
  if (c.format == "pairs") {
    all = from_pairs(c.path, options);
  } else if (c.format == "folder") {
    const PictureList list = list_pictures(dataset, c.split);
    for (const std::string& note : list.notes) log_warn(note);
    for (const std::string& broken : list.broken) log_warn(broken);
    all = from_files(list, options);
  } else {
    const auto data = std::make_shared<const ImageDataset>(read_dataset(dataset, c.split));
    for (std::int64_t i = 0; i < data->size(); ++i) {
      all.push_back({i, cat(c.split, " ", i), [data, i] { return state_of_bytes(data->images[i]); },
                     [data, i] { return data->labels[i].item<std::int64_t>(); }});
    }
  }
  const auto size = static_cast<std::int64_t>(all.size());
  if (c.first >= size) {
    fail(ErrorKind::kConfig, cat("targets.first is ", c.first, ", there are ",
                                 counted(size, "target"), " in ", c.path));
  }
  const std::int64_t end = c.count == 0 ? size : std::min(size, c.first + c.count);
  return {all.begin() + c.first, all.begin() + end};
}

CheckedTarget read_target(const Target& target, const Generator& generator) {
  CheckedTarget out;
  out.image = target.image();
  const std::vector<std::int64_t> shape = generator.sample_shape();
  if (out.image.dim() == 3 && out.image.size(0) == 1 && shape.size() == 3 && shape[0] == 3) {
    out.image = out.image.expand({3, -1, -1}).contiguous();
  }
  if (out.image.sizes() != at::IntArrayRef(shape)) {
    fail(ErrorKind::kBadFile,
         cat(target.name, ": the picture is ", shape_text(out.image.sizes()),
             ", the generator makes ", shape_text(shape)),
         "targets.size crops and resizes");
  }
  if (!at::isfinite(out.image).all().item<bool>()) {
    fail(ErrorKind::kBadFile, cat(target.name, ": the picture has values that are not finite"));
  }
  if (generator.classes() > 0) {
    out.label = target.label();
    if (out.label < 0 || out.label >= generator.classes()) {
      fail(ErrorKind::kBadFile, cat(target.name, ": label ", out.label, ", the generator has ",
                                    generator.classes(), " classes"));
    }
  }
  return out;
}

}  // namespace tiltflow
