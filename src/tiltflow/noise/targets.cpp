#include "tiltflow/noise/targets.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "tiltflow/base/count.h"
#include "tiltflow/base/error.h"
#include "tiltflow/base/file.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/tensor/aten.h"

namespace tiltflow {
namespace {

namespace fs = std::filesystem;

std::vector<Target> from_files(const std::vector<fs::path>& files, const std::vector<std::int64_t>& labels, std::int64_t size) {
  std::vector<Target> out;
  for (std::size_t i = 0; i < files.size(); ++i) {
    out.push_back({static_cast<std::int64_t>(i), files[i].string(), [file = files[i], size] { return state_of_bytes(read_picture(file, size)); }, [label = labels[i]] { return label; }});
  }
  return out;
}

// One JSON object a line. A broken line is a bad target, not a bad list.
std::vector<Target> from_pairs(const fs::path& folder, std::int64_t size) {
  const fs::path list = folder / "pairs.jsonl";
  std::vector<Target> out;
  for (const std::string& line : split(read_file(list, std::size_t{1} << 30), '\n')) {
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    const std::int64_t id = static_cast<std::int64_t>(out.size());
    const std::string where = cat(list.string(), ":", id + 1);
    const nlohmann::json entry = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (!entry.is_object() || !entry.contains("image") || !entry["image"].is_string()) {
      const auto broken = [where]() -> at::Tensor { fail(ErrorKind::kBadFile, where + ": expected a JSON object with a string \"image\""); };
      out.push_back({id, where, broken, [] { return std::int64_t{0}; }});
      continue;
    }
    const fs::path given = entry["image"].get<std::string>(), file = given.is_absolute() ? given : folder / given;
    const bool labelled = entry.contains("label") && entry["label"].is_number_integer();
    const std::int64_t label = labelled ? entry["label"].get<std::int64_t>() : 0;
    out.push_back({id, given.string(), [file, size] { return state_of_bytes(read_picture(file, size)); }, [labelled, label, where]() -> std::int64_t {
                     if (!labelled) fail(ErrorKind::kBadFile, where + ": no whole number \"label\", which this generator needs");
                     return label;
                   }});
  }
  return out;
}

}  // namespace

void bind(Fields& f, TargetsConfig& c) {
  f.value("format", c.format, "idx (MNIST files), cifar (binary records), folder (one sub-folder a class) or pairs (pairs.jsonl with image and label)", one_of({"idx", "cifar", "folder", "pairs"}));
  f.value("path", c.path, "folder that holds the target images");
  f.value("split", c.split, "train or test", one_of({"train", "test"}));
  f.value("size", c.size, "crop and resize every picture to its central square of this size; 0: as they are", at_least_integer(0));
  f.value("first", c.first, "first target", at_least_integer(0));
  f.value("count", c.count, "number of targets; 0 = all from the first on", at_least_integer(0));
}

std::vector<Target> list_targets(const TargetsConfig& c) {
  if (c.path.empty()) fail(ErrorKind::kConfig, "targets.path is missing", "the folder of the target images, e.g. targets.path = \"data/mnist\"");
  std::vector<Target> all;
  const DatasetConfig dataset{c.format, c.path, c.size};
  if (c.format == "pairs") {
    all = from_pairs(c.path, c.size);
  } else if (c.format == "folder") {
    const PictureList list = list_pictures(dataset, c.split);
    all = from_files(list.files, list.labels, c.size);
  } else {
    const auto data = std::make_shared<const ImageDataset>(read_dataset(dataset, c.split));
    for (std::int64_t i = 0; i < data->size(); ++i) {
      all.push_back({i, cat(c.split, " ", i), [data, i] { return state_of_bytes(data->images[i]); }, [data, i] { return data->labels[i].item<std::int64_t>(); }});
    }
  }
  const auto size = static_cast<std::int64_t>(all.size());
  if (c.first >= size) fail(ErrorKind::kConfig, cat("targets.first is ", c.first, ", there are ", counted(size, "target"), " in ", c.path));
  const std::int64_t end = c.count == 0 ? size : std::min(size, c.first + c.count);
  return {all.begin() + c.first, all.begin() + end};
}

CheckedTarget read_target(const Target& target, const Generator& generator) {
  CheckedTarget out;
  out.image = target.image();
  const std::vector<std::int64_t> shape = generator.sample_shape();
  if (out.image.dim() == 3 && out.image.size(0) == 1 && shape.size() == 3 && shape[0] == 3) out.image = out.image.expand({3, -1, -1}).contiguous();
  if (out.image.sizes() != at::IntArrayRef(shape)) fail(ErrorKind::kBadFile, cat(target.name, ": the picture is ", shape_text(out.image.sizes()), ", the generator makes ", shape_text(shape)), "targets.size crops and resizes");
  if (!at::isfinite(out.image).all().item<bool>()) fail(ErrorKind::kBadFile, cat(target.name, ": the picture has values that are not finite"));
  if (generator.classes() > 0) {
    out.label = target.label();
    if (out.label < 0 || out.label >= generator.classes()) fail(ErrorKind::kBadFile, cat(target.name, ": label ", out.label, ", the generator has ", generator.classes(), " classes"));
  }
  return out;
}

}  // namespace tiltflow
