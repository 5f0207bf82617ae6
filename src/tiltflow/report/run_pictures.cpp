#include "tiltflow/report/run_pictures.h"

#include <algorithm>
#include <vector>

#include "tiltflow/base/file.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/io/image.h"
#include "tiltflow/report/html.h"
#include "tiltflow/tensor/aten.h"

namespace tiltflow {
namespace {

namespace fs = std::filesystem;

// What pictures of some names show; others stand under their own name.
struct PictureKind {
  std::string prefix, caption;
};
const std::vector<PictureKind>& picture_kinds() {
  static const std::vector<PictureKind> kinds{
      {"base-above-tuned",
       "In pairs from one noise and label: base above, tuned below; the number is the reward of "
       "the sample"},
      {"adjoint",
       "Where the reward pulls: size of the adjoint over the image at five times, each map scaled "
       "to its own maximum"},
      {"target-base-tuned",
       "In threes: the target, then what the base and the tuned generator make of its noise"},
      {"random-base-tuned", "In pairs: base and tuned generator from the same random noise"},
  };
  return kinds;
}

// "samples" of samples-step-000100.png; "" when the name has no step.
std::string kind_of(const fs::path& file) {
  const std::string stem = file.stem().string();
  const std::size_t at = stem.rfind("-step-");
  return at == std::string::npos ? "" : stem.substr(0, at);
}

std::string step_text(const fs::path& file) {
  const std::string stem = file.stem().string();
  const std::string digits = stem.substr(stem.rfind('-') + 1);
  const std::size_t first = std::min(digits.find_first_not_of('0'), digits.size() - 1);
  return "step " + digits.substr(first);
}

// Pictures of samples/ by kind, each oldest first.
std::vector<std::pair<std::string, std::vector<fs::path>>> pictures_of(const fs::path& run) {
  std::vector<fs::path> files;
  std::error_code code;
  for (const auto& entry : fs::directory_iterator(run / "samples", code)) {
    if (entry.path().extension() == ".png" && !kind_of(entry.path()).empty()) {
      files.push_back(entry.path());
    }
  }
  std::sort(files.begin(), files.end(), [](const fs::path& a, const fs::path& b) {
    const std::string left = a.stem().string();
    const std::string right = b.stem().string();
    return std::pair{left.size(), left} <
           std::pair{right.size(), right};  // a million steps have one digit more
  });
  std::vector<std::pair<std::string, std::vector<fs::path>>> out;
  for (const fs::path& file : files) {
    const auto known = std::find_if(
        out.begin(), out.end(), [&](const auto& group) { return group.first == kind_of(file); });
    if (known != out.end()) {
      known->second.push_back(file);
    } else {
      out.push_back({kind_of(file), {file}});
    }
  }
  return out;
}

void write_before_after(const fs::path& first, const fs::path& last, const fs::path& out) {
  constexpr std::int64_t kGap = 24;
  const at::Tensor before = read_image(first);
  const at::Tensor after = read_image(last);
  if (before.sizes() != after.sizes()) return;
  write_png(out, at::cat({before, at::ones({before.size(0), before.size(1), kGap}), after}, 2));
}

}  // namespace

std::string pictures_html(const fs::path& run, bool tuned) {
  std::string samples;
  std::string others;
  for (const auto& [kind, files] : pictures_of(run)) {
    const fs::path& last = files.back();
    if (kind == "samples") {
      if (files.size() > 1) {
        const std::string before =
            tuned ? "Before: the base model" : "At " + step_text(files.front());
        samples += picture_figure(read_file(files.front()), before);
        write_before_after(files.front(), last, run / "before-after.png");
      }
      samples +=
          picture_figure(read_file(last), files.size() > 1 && tuned
                                              ? cat("After: the tuned model at ", step_text(last))
                                              : cat("Samples at ", step_text(last)));
      continue;
    }
    std::string caption = kind;
    for (const PictureKind& known : picture_kinds()) {
      if (known.prefix == kind) caption = known.caption;
    }
    others += picture_figure(read_file(last), cat(caption, " (", step_text(last), ")."));
  }
  if (samples.empty() && others.empty()) return "";
  const std::string shown =
      tuned ? "<p class=\"soft\">Base and tuned model start from the same noise. Pictures show "
              "samples without the noise that the sampler's last step "
              "leaves in them, as the model predicts them; every number is of the samples "
              "themselves.</p>"
            : "";
  return cat("<h2 id=\"pictures\">Pictures</h2>", shown, figure_grid(samples), figure_grid(others));
}

}  // namespace tiltflow
