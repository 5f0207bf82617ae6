#include "tiltflow/io/picture_folder.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <map>
#include <set>

#include "tiltflow/base/error.h"
#include "tiltflow/base/strings.h"

namespace tiltflow {
namespace {

namespace fs = std::filesystem;

constexpr std::array kRead{".png", ".jpg", ".jpeg", ".webp", ".bmp"};
constexpr std::array kOther{".gif", ".tif",  ".tiff", ".avif", ".heic", ".heif", ".jp2",
                            ".jxl", ".jfif", ".jpe",  ".ppm",  ".pgm",  ".pbm",  ".pnm",
                            ".tga", ".ico",  ".svg",  ".psd",  ".exr",  ".hdr",  ".npy"};
// Written beside pictures by file managers, archivers and file systems.
constexpr std::array kLitter{
    "__MACOSX", "@eaDir", "lost+found", "$RECYCLE.BIN", "System Volume Information", "__pycache__"};

template <class Names>
bool is_one_of(const std::string& name, const Names& names) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

bool is_litter(const fs::path& path) {
  const std::string name = path.filename().string();
  return starts_with(name, ".") || is_one_of(name, kLitter);
}

std::string lower_suffix(const fs::path& file) {
  std::string suffix = file.extension().string();
  for (char& c : suffix) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return suffix;
}

std::vector<fs::directory_entry> entries_of(const fs::path& folder) {
  std::error_code code;
  std::vector<fs::directory_entry> out;
  for (fs::directory_iterator it(folder, code), end; !code && it != end; it.increment(code)) {
    out.push_back(*it);
  }
  if (code) fail(ErrorKind::kBadFile, cat("cannot list ", folder.string(), ": ", code.message()));
  std::sort(out.begin(), out.end());
  return out;
}

bool is_folder(const fs::directory_entry& entry) {
  std::error_code code;
  return entry.is_directory(code);
}

// "a, b, c and 4 more"
std::string some_of(const std::vector<std::string>& names) {
  constexpr std::size_t kShown = 5;
  const std::vector<std::string> first(
      names.begin(), names.begin() + static_cast<std::ptrdiff_t>(std::min(kShown, names.size())));
  const std::string shown = join(first, ", ");
  return names.size() > kShown ? cat(shown, " and ", names.size() - kShown, " more") : shown;
}

class FolderWalk {
 public:
  explicit FolderWalk(fs::path root) : root_(std::move(root)) {}

  PictureList run() {
    std::vector<fs::path> classes;
    above_.insert(fs::canonical(root_));
    for (const fs::directory_entry& entry : entries_of(root_)) {
      if (is_litter(entry.path())) {
        note_litter(entry);
      } else if (is_folder(entry)) {
        classes.push_back(entry.path());
      } else if (is_one_of(lower_suffix(entry.path()), kRead)) {
        beside_.push_back(entry.path().filename().string());
      }
    }
    for (const fs::path& path : classes) add_class(path);
    refuse_empty_classes(classes);
    write_notes();
    return std::move(list_);
  }

 private:
  void add_class(const fs::path& path) {
    std::vector<fs::path> found;
    const std::size_t broken_before = list_.broken.size();
    walk(path, found);
    // as sorted(os.walk(...)) with the names of each folder sorted: by folder, then by name
    std::sort(found.begin(), found.end(), [](const fs::path& a, const fs::path& b) {
      const std::string folder_a = a.parent_path().string();
      const std::string folder_b = b.parent_path().string();
      return folder_a != folder_b ? folder_a < folder_b
                                  : a.filename().string() < b.filename().string();
    });
    const std::string name = path.filename().string();
    if (found.empty() && list_.broken.size() == broken_before) empty_.push_back(name);
    list_.files.insert(list_.files.end(), found.begin(), found.end());
    list_.labels.resize(list_.files.size(), static_cast<std::int64_t>(list_.class_names.size()));
    list_.class_names.push_back(name);
  }

  void walk(const fs::path& folder, std::vector<fs::path>& found) {
    std::error_code code;
    const fs::path real = fs::canonical(folder, code);
    if (code || !above_.insert(real).second) {
      loops_.push_back(relative(folder));
      return;
    }
    for (const fs::directory_entry& entry : entries_of(folder)) {
      if (is_litter(entry.path())) {
        note_litter(entry);
      } else if (is_folder(entry)) {
        walk(entry.path(), found);
      } else {
        add_file(entry, found);
      }
    }
    above_.erase(real);
  }

  void add_file(const fs::directory_entry& entry, std::vector<fs::path>& found) {
    const std::string suffix = lower_suffix(entry.path());
    if (is_one_of(suffix, kOther)) ++other_[suffix];
    if (!is_one_of(suffix, kRead)) return;
    std::error_code code;
    if (entry.is_regular_file(code)) {
      found.push_back(entry.path());
    } else {
      list_.broken.push_back(cat(entry.path().string(), entry.exists(code)
                                                            ? ": not a regular file"
                                                            : ": a link to nothing"));
    }
  }

  void note_litter(const fs::directory_entry& entry) {
    if (is_folder(entry)) {
      hidden_.push_back(relative(entry.path()));
    } else if (is_one_of(lower_suffix(entry.path()), kRead)) {
      hidden_files_.push_back(relative(entry.path()));
    }
  }

  std::string relative(const fs::path& path) const {
    return path.lexically_relative(root_).string();
  }

  void refuse_empty_classes(const std::vector<fs::path>& classes) {
    if (list_.files.empty() && list_.broken.empty()) {
      const std::string others = other_formats();
      fail(ErrorKind::kBadFile,
           cat("no pictures in ", root_.string(), others.empty() ? "" : "; " + others),
           beside_.empty()
               ? "expected one sub-folder per class with PNG, JPEG, WEBP or BMP files"
               : "pictures stand in the folder itself: put them into one sub-folder per class");
    }
    if (empty_.empty()) return;
    const std::string others = other_formats();
    fail(ErrorKind::kBadFile,
         cat(root_.string(), ": classes without pictures: ", empty_.size(), " of ", classes.size(),
             " (", some_of(empty_), ")", others.empty() ? "" : "; " + others),
         "PNG, JPEG, WEBP and BMP are read; every sub-folder is a class, so remove or fill these");
  }

  std::string other_formats() const {
    std::size_t count = 0;
    std::vector<std::string> each;
    for (const auto& [suffix, files] : other_) {
      count += files;
      each.push_back(cat(suffix, " ", files));
    }
    return count == 0
               ? ""
               : cat("files of formats that are not read: ", count, " (", join(each, ", "), ")");
  }

  void write_notes() {
    const auto add = [this](const std::string& note) {
      list_.notes.push_back(cat(root_.string(), ": ", note));
    };
    if (!other_.empty()) add(other_formats());
    if (!beside_.empty()) {
      add(cat("pictures beside the class folders belong to no class and are left out: ",
              beside_.size(), " (", some_of(beside_), ")"));
    }
    if (!hidden_.empty()) {
      add(cat("hidden folders are no classes and are left out: ", some_of(hidden_)));
    }
    if (!hidden_files_.empty()) {
      add(cat("pictures whose name begins with a dot are left out: ", hidden_files_.size(), " (",
              some_of(hidden_files_), ")"));
    }
    if (!loops_.empty()) add(cat("links to a folder above are not followed: ", some_of(loops_)));
  }

  fs::path root_;
  PictureList list_;
  std::set<fs::path> above_;  // the folders on the way down, so that links cannot lead in circles
  std::vector<std::string> beside_, hidden_, hidden_files_, loops_, empty_;
  std::map<std::string, std::size_t> other_;
};

}  // namespace

PictureList list_picture_folder(const fs::path& folder) {
  if (!fs::is_directory(folder)) {
    fail(ErrorKind::kBadFile, cat("image folder not found: ", folder.string()));
  }
  return FolderWalk(folder).run();
}

}  // namespace tiltflow
