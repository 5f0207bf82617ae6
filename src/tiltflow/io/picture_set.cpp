#include "tiltflow/io/picture_set.h"

#include <algorithm>
#include <atomic>
#include <map>

#include "tiltflow/base/error.h"
#include "tiltflow/base/progress.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/tensor/aten.h"
#include "tiltflow/tensor/parallel.h"
#include "tiltflow/tensor/parameters.h"

namespace tiltflow {
namespace {

namespace fs = std::filesystem;
using Shape = std::vector<std::int64_t>;

constexpr std::size_t kShown = 8;  // names in one message

// What a first look at one file found.
struct Seen {
  at::Tensor bytes;  // undefined when unreadable or not kept
  Shape shape;       // empty when unreadable
  std::string problem;
  bool transparent = false;
  bool rotated = false;
  bool animated = false;
};

Seen look_at(const fs::path& file, const PictureOptions& options) {
  Seen seen;
  try {
    const Picture picture = read_picture_file(file);
    seen.transparent = picture.alpha.defined();
    seen.rotated = picture.orientation != 1;
    seen.animated = picture.frames > 1;
    seen.bytes = prepared(picture, options, file.string());
    seen.shape = seen.bytes.sizes().vec();
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::kBadFile) throw;
    seen.problem = error.what();
  }
  return seen;
}

// Every file decoded once; pixels are kept as long as all of them fit into `memory`.
struct FirstLook {
  std::vector<Seen> seen;
  bool kept = true;
};

FirstLook look_at_all(const std::vector<fs::path>& files, const DatasetConfig& config) {
  constexpr std::int64_t kPiece = 64;
  constexpr std::size_t kManyFiles = 5000;
  FirstLook out;
  out.seen.resize(files.size());
  const PictureOptions options = picture_options(config);
  std::unique_ptr<Progress> progress;
  if (files.size() >= kManyFiles) {
    progress = std::make_unique<Progress>("read pictures", static_cast<std::int64_t>(files.size()));
  }
  double bytes = 0;
  for (std::int64_t first = 0; first < static_cast<std::int64_t>(files.size()); first += kPiece) {
    const std::int64_t n = std::min(kPiece, static_cast<std::int64_t>(files.size()) - first);
    parallel_for(n, [&](std::int64_t i) {
      const auto index = static_cast<std::size_t>(first + i);
      out.seen[index] = look_at(files[index], options);
    });
    for (std::int64_t i = first; i < first + n; ++i) {
      at::Tensor& pixels = out.seen[static_cast<std::size_t>(i)].bytes;
      if (pixels.defined()) bytes += static_cast<double>(pixels.nbytes());
      if (!out.kept) pixels.reset();
    }
    if (out.kept && bytes > config.memory) {
      out.kept = false;
      for (Seen& seen : out.seen) seen.bytes.reset();
    }
    if (progress) progress->update(first + n);
  }
  return out;
}

// The first few, and how many more there are.
std::string first_of(const std::vector<std::string>& all, const std::string& separator) {
  const std::vector<std::string> shown(
      all.begin(), all.begin() + static_cast<std::ptrdiff_t>(std::min(kShown, all.size())));
  return all.size() > kShown
             ? cat(join(shown, separator), separator, "and ", all.size() - kShown, " more")
             : join(shown, separator);
}

// The problems of links and pipes found while listing, then those of files.
std::vector<std::string> problems_of(const PictureList& list, const std::vector<Seen>& seen) {
  std::vector<std::string> out = list.broken;
  for (const Seen& one : seen) {
    if (!one.problem.empty()) out.push_back(one.problem);
  }
  return out;
}

// Channels of the whole set: three as soon as one picture is coloured. Height and width: what most
// pictures have.
Shape common_shape(const std::vector<Seen>& seen) {
  std::int64_t channels = 1;
  std::map<Shape, std::int64_t> votes;
  for (const Seen& one : seen) {
    if (one.shape.empty()) continue;
    channels = std::max(channels, one.shape[0]);
    ++votes[{one.shape[1], one.shape[2]}];
  }
  const auto most = std::max_element(
      votes.begin(), votes.end(), [](const auto& a, const auto& b) { return a.second < b.second; });
  return {channels, most->first[0], most->first[1]};
}

void refuse_other_sizes(const std::vector<fs::path>& files, const std::vector<Seen>& seen,
                        const Shape& shape, const std::string& name) {
  std::vector<std::string> others;
  for (std::size_t i = 0; i < files.size(); ++i) {
    const Shape& found = seen[i].shape;
    if (found.empty() || (found[1] == shape[1] && found[2] == shape[2])) continue;
    others.push_back(cat(files[i].string(), ": ", found[1], " x ", found[2]));
  }
  if (others.empty()) return;
  fail(ErrorKind::kBadFile,
       cat(name, ": not ", shape[1], " x ", shape[2], " as the others: ", others.size(), " of ",
           files.size(), " pictures:\n  ", first_of(others, "\n  ")),
       "give a size (data.size, --size) to crop and resize all of them");
}

// Counts of what was read otherwise than a viewer would show it.
class Notes {
 public:
  Notes(const std::vector<fs::path>& files, const std::vector<Seen>& seen,
        const DatasetConfig& config)
      : files_(files), seen_(seen) {
    const std::string rule = config.alpha == "drop"
                                 ? "whose alpha is dropped and whose colour is kept, as "
                                   "torchvision's ImageFolder does (data.alpha)"
                                 : cat("composed on ", config.alpha, " (data.alpha)");
    add("transparent pixels, " + rule, [](const Seen& one) { return one.transparent; });
    add("an EXIF rotation that is not applied, as in ImageFolder,",
        [](const Seen& one) { return one.rotated; });
    add("an animation, of which the first frame is used,",
        [](const Seen& one) { return one.animated; });
  }

  void add_mixture(const Shape& shape) {
    if (shape[0] == 3) {
      add("grey among colours, repeated for three channels (data.channels),",
          [](const Seen& one) { return !one.shape.empty() && one.shape[0] == 1; });
    }
  }

  const std::vector<std::string>& text() const { return text_; }

 private:
  template <class Test>
  void add(const std::string& what, const Test& test) {
    std::vector<std::string> names;
    for (std::size_t i = 0; i < seen_.size(); ++i) {
      if (test(seen_[i])) names.push_back(files_[i].string());
    }
    if (!names.empty()) {
      text_.push_back(cat(what, " in ", names.size(), " of ", files_.size(), " pictures: first ",
                          names.front()));
    }
  }

  const std::vector<fs::path>& files_;
  const std::vector<Seen>& seen_;
  std::vector<std::string> text_;
};

at::Tensor stacked(std::vector<Seen>& seen, const Shape& shape, std::int64_t count) {
  at::Tensor out = at::empty({count, shape[0], shape[1], shape[2]}, at::kByte);
  std::int64_t next = 0;
  for (Seen& one : seen) {
    if (!one.bytes.defined()) continue;
    out[next++].copy_(one.bytes.expand(shape));
    one.bytes.reset();
  }
  return out;
}

}  // namespace

ImageDataset read_picture_set(PictureList list, const DatasetConfig& config,
                              const std::string& name) {
  FirstLook look = look_at_all(list.files, config);
  std::vector<Seen>& seen = look.seen;
  const std::vector<std::string> problems = problems_of(list, seen);
  const std::size_t total = list.files.size() + list.broken.size();
  const std::string which =
      cat(problems.size(), " of ", total, " pictures:\n  ", first_of(problems, "\n  "));
  if (!problems.empty() && (!config.skip_bad || problems.size() == total)) {
    fail(ErrorKind::kBadFile, cat(name, ": cannot be used: ", which),
         config.skip_bad
             ? "none is left"
             : "repair or remove them, or leave them out with data.skip_bad = true (--skip-bad)");
  }
  ImageDataset data;
  data.skipped = problems;
  data.notes = list.notes;
  if (!problems.empty()) data.notes.push_back(cat(name, ": skipped: ", which));
  const Shape shape = common_shape(seen);
  refuse_other_sizes(list.files, seen, shape, name);
  Notes notes(list.files, seen, config);
  notes.add_mixture(shape);
  data.notes.insert(data.notes.end(), notes.text().begin(), notes.text().end());
  std::vector<std::int64_t> labels;
  std::vector<fs::path> files;
  for (std::size_t i = 0; i < seen.size(); ++i) {
    if (seen[i].shape.empty()) continue;
    labels.push_back(list.labels[i]);
    files.push_back(std::move(list.files[i]));
  }
  data.class_names = std::move(list.class_names);
  data.labels = at::tensor(labels, at::kLong);
  const auto count = static_cast<std::int64_t>(files.size());
  const double bytes =
      static_cast<double>(count) * static_cast<double>(shape[0] * shape[1] * shape[2]);
  if (look.kept && bytes <= config.memory) {
    data.images = stacked(seen, shape, count);
  } else {
    data.disk = {std::move(files), shape, picture_options(config)};
  }
  return data;
}

at::Tensor read_pictures(const PicturesOnDisk& disk, const std::vector<fs::path>& files) {
  std::vector<at::Tensor> pictures(files.size());
  parallel_for(static_cast<std::int64_t>(files.size()), [&](std::int64_t i) {
    const fs::path& file = files[static_cast<std::size_t>(i)];
    const at::Tensor picture = with_channels(read_picture(file, disk.options), disk.shape[0]);
    if (picture.sizes() != at::IntArrayRef(disk.shape)) {
      fail(ErrorKind::kBadFile,
           cat(file.string(), ": the picture is ", shape_text(picture.sizes()), " now, it was ",
               shape_text(disk.shape)),
           "the file has changed since the start");
    }
    pictures[static_cast<std::size_t>(i)] = picture;
  });
  return at::stack(pictures);
}

}  // namespace tiltflow
