#include "tiltflow/io/record_files.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "tiltflow/base/error.h"
#include "tiltflow/base/file.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/io/npz.h"
#include "tiltflow/tensor/aten.h"

namespace tiltflow {
namespace {

namespace fs = std::filesystem;

fs::path with_or_without_gz(const fs::path& path) {
  if (fs::exists(path)) return path;
  const fs::path zipped = path.string() + ".gz";
  if (fs::exists(zipped)) return zipped;
  fail(ErrorKind::kBadFile, cat("data file not found: ", path.string(), "[.gz]"),
       "set data.path to the folder that holds it");
}

std::uint32_t big_endian(const std::string& bytes, std::size_t offset) {
  std::uint32_t value = 0;
  for (std::size_t i = 0; i < 4; ++i) {
    value = (value << 8) | static_cast<unsigned char>(bytes[offset + i]);
  }
  return value;
}

struct IdxType {
  unsigned code;
  at::ScalarType type;
  const char* name;
};

constexpr IdxType kIdxTypes[] = {{0x08, at::kByte, "uint8"},    {0x09, at::kChar, "int8"},
                                 {0x0b, at::kShort, "int16"},   {0x0c, at::kInt, "int32"},
                                 {0x0d, at::kFloat, "float32"}, {0x0e, at::kDouble, "float64"}};

// Two zero bytes, the type, the number of dimensions, dimensions and elements big-endian.
at::Tensor read_idx(const fs::path& path, std::size_t dimensions) {
  const std::string bytes = read_file_gz(path);
  const auto bad = [&](const std::string& what) {
    fail(ErrorKind::kBadFile, cat(path.string(), ": ", what));
  };
  const std::size_t header = 4 + 4 * dimensions;
  if (bytes.size() < header || bytes[0] != 0 || bytes[1] != 0) bad("not an idx file");
  const auto code = static_cast<unsigned char>(bytes[2]);
  const IdxType* type = std::find_if(std::begin(kIdxTypes), std::end(kIdxTypes),
                                     [&](const IdxType& t) { return t.code == code; });
  if (type == std::end(kIdxTypes)) {
    bad(cat("not an idx file: element type ", static_cast<int>(code), " is unknown"));
  }
  const auto found = static_cast<std::size_t>(static_cast<unsigned char>(bytes[3]));
  if (found != dimensions) bad(cat("an idx file of ", found, " dimensions, expected ", dimensions));
  const std::size_t width = elementSize(type->type);
  std::vector<std::int64_t> shape;
  std::uint64_t count = width;
  for (std::size_t i = 0; i < dimensions; ++i) {
    shape.push_back(big_endian(bytes, 4 + 4 * i));
    if (count <= bytes.size()) count *= static_cast<std::uint64_t>(shape.back());
  }
  if (count != bytes.size() - header) {
    bad(cat(bytes.size() - header, " data bytes, the header promises ", count));
  }
  std::string data = bytes.substr(header);
  if (std::endian::native == std::endian::little && width > 1) {
    for (std::size_t i = 0; i < data.size(); i += width) {
      std::reverse(data.begin() + static_cast<std::ptrdiff_t>(i),
                   data.begin() + static_cast<std::ptrdiff_t>(i + width));
    }
  }
  at::Tensor out = at::empty(shape, type->type);
  std::memcpy(out.data_ptr(), data.data(), data.size());
  return out;
}

std::vector<std::string> number_names(std::int64_t n) {
  std::vector<std::string> names;
  for (std::int64_t i = 0; i < n; ++i) names.push_back(std::to_string(i));
  return names;
}

// Refuses what is no labelled set of bytes.
ImageDataset labelled_images(at::Tensor images, const at::Tensor& labels,
                             const std::string& where) {
  const auto bad = [&](const std::string& what) {
    fail(ErrorKind::kBadFile, cat(where, ": ", what));
  };
  if (images.size(0) == 0 || images.numel() == 0) bad("there are no pictures");
  if (images.scalar_type() != at::kByte) {
    bad(cat("the pictures are ", toString(images.scalar_type()), ", only bytes (uint8) are read"));
  }
  if (!at::isIntegralType(labels.scalar_type(), /*includeBool=*/false)) {
    bad(cat("the labels are ", toString(labels.scalar_type()), ", not whole numbers"));
  }
  if (labels.dim() != 1 || images.size(0) != labels.size(0)) {
    bad(cat(images.size(0), " pictures but labels ", shape_text(labels.sizes())));
  }
  ImageDataset data;
  data.images = std::move(images);
  data.labels = labels.to(at::kLong);
  data.class_names = number_names(class_count(data.labels, where));
  return data;
}

}  // namespace

ImageDataset read_idx_pair(const fs::path& folder, const std::string& split) {
  const std::string prefix = split == "train" ? "train" : "t10k";
  const at::Tensor images =
      read_idx(with_or_without_gz(folder / (prefix + "-images-idx3-ubyte")), 3);
  const at::Tensor labels =
      read_idx(with_or_without_gz(folder / (prefix + "-labels-idx1-ubyte")), 1);
  return labelled_images(images.unsqueeze(1), labels,
                         folder.string());  // [N, H, W] -> [N, 1, H, W]
}

namespace {

bool belongs_to(const fs::path& file, const std::string& split) {
  const std::string name = file.filename().string();
  if (!ends_with(name, ".bin") && !ends_with(name, ".bin.gz")) return false;
  const bool test = name.find("test") != std::string::npos;
  const bool train = name.find("train") != std::string::npos || starts_with(name, "data_batch");
  return split == "test" ? test : train && !test;
}

std::vector<fs::path> cifar_files(const fs::path& folder, const std::string& split) {
  std::vector<fs::path> files;
  std::error_code code;
  for (const auto& entry : fs::directory_iterator(folder, code)) {
    if (!starts_with(entry.path().filename().string(), ".") && belongs_to(entry.path(), split)) {
      files.push_back(entry.path());
    }
  }
  std::sort(files.begin(), files.end());
  // a.bin stands before a.bin.gz: the same records twice
  const auto packed_again = [](const fs::path& a, const fs::path& b) {
    return b.string() == a.string() + ".gz";
  };
  files.erase(std::unique(files.begin(), files.end(), packed_again), files.end());
  if (files.empty()) {
    fail(ErrorKind::kBadFile,
         cat("no CIFAR binary files for the ", split, " split in ", folder.string()),
         "set data.path to the folder that holds data_batch_1.bin and the others (the binary "
         "version, not the Python one)");
  }
  return files;
}

// A sentence when the files are not the five batches of the original, "" when they are, or have
// other names.
std::string unusual_batches(const std::vector<fs::path>& files) {
  constexpr std::string_view kBatch = "data_batch_";
  std::vector<std::string> names;
  for (const fs::path& file : files) names.push_back(file.filename().string());
  const auto is_batch = [&](const std::string& name) { return starts_with(name, kBatch); };
  if (std::none_of(names.begin(), names.end(), is_batch)) return "";
  std::vector<std::string> missing;
  for (char number = '1'; number <= '5'; ++number) {
    const std::string batch = cat(kBatch, number, ".bin");
    const auto here = [&](const std::string& name) {
      return name == batch || name == batch + ".gz";
    };
    if (std::none_of(names.begin(), names.end(), here)) missing.push_back(batch);
  }
  if (missing.empty() && names.size() == 5) return "";
  return cat("read ", join(names, ", "),
             missing.empty()
                 ? ""
                 : cat("; of the original's five files these are missing: ", join(missing, ", ")));
}

}  // namespace

ImageDataset read_cifar(const fs::path& folder, const std::string& split) {
  constexpr std::size_t kRecord = 1 + 3 * 32 * 32;
  constexpr std::size_t kRecordOfHundred = kRecord + 1;
  std::vector<at::Tensor> images, labels;
  const std::vector<fs::path> files = cifar_files(folder, split);
  for (const fs::path& file : files) {
    const std::string bytes = read_file_gz(file);
    if (bytes.empty() || bytes.size() % kRecord) {
      const bool hundred = !bytes.empty() && bytes.size() % kRecordOfHundred == 0;
      fail(ErrorKind::kBadFile,
           cat(file.string(), ": ", bytes.size(), " bytes is not a multiple of the record size ",
               kRecord),
           hundred
               ? "these look like CIFAR-100 records, which are not read; pictures in folders are"
               : "");
    }
    at::Tensor records = at::empty(
        {static_cast<std::int64_t>(bytes.size() / kRecord), static_cast<std::int64_t>(kRecord)},
        at::kByte);
    std::memcpy(records.data_ptr(), bytes.data(), bytes.size());
    const at::Tensor file_labels = records.select(1, 0).to(at::kLong);
    if (file_labels.max().item<std::int64_t>() > 9) {
      fail(ErrorKind::kBadFile, cat(file.string(), ": a label exceeds 9; not CIFAR-10 records"));
    }
    labels.push_back(file_labels);
    images.push_back(records.narrow(1, 1, kRecord - 1).reshape({-1, 3, 32, 32}));
  }
  ImageDataset data;
  data.images = at::cat(images);
  data.labels = at::cat(labels);
  data.class_names = number_names(10);
  const std::string unusual = split == "train" ? unusual_batches(files) : "";
  if (!unusual.empty()) data.notes.push_back(cat(folder.string(), ": ", unusual));
  return data;
}

namespace {

// Arrays that may have been meant as labels, in a sentence; "" when there are none.
std::string unread_arrays(const fs::path& file) {
  std::vector<std::string> others;
  for (const std::string& name : npz_names(file)) {
    const bool known = name == "arr_0" || name == "images" || name == "mu" || name == "sigma";
    if (!known) others.push_back(name);
  }
  if (others.empty()) return "";
  return cat(file.string(),
             ": has no labels (arr_1 or labels), so every picture is of class 0; not read: ",
             join(others, ", "));
}

}  // namespace

ImageDataset read_numpy_images(const fs::path& file) {
  const ParameterSet arrays = read_npz(file, {"arr_0", "images", "arr_1", "labels"});
  const auto first_of = [&](const char* a, const char* b) {
    return arrays.contains(a) ? arrays.at(a) : arrays.contains(b) ? arrays.at(b) : at::Tensor();
  };
  at::Tensor images = first_of("arr_0", "images");
  if (!images.defined()) {
    fail(ErrorKind::kBadFile, cat(file.string(), ": no pictures (an array arr_0 or images)"),
         cat("it has: ", join(npz_names(file), ", ")));
  }
  if (images.dim() == 3 && images.size(2) <= 4 && images.size(1) > 4) {
    fail(ErrorKind::kBadFile,
         cat(file.string(), ": the pictures are ", shape_text(images.sizes()),
             ", which looks like a single picture"),
         "expected [N, H, W] or [N, H, W, 1 or 3]");
  }
  if (images.dim() == 3) images = images.unsqueeze(3);  // [N, H, W] -> [N, H, W, 1]
  if (images.dim() != 4 || (images.size(3) != 1 && images.size(3) != 3)) {
    fail(ErrorKind::kBadFile, cat(file.string(), ": the pictures are ", shape_text(images.sizes()),
                                  ", expected [N, H, W] or [N, H, W, 1 or 3]"));
  }
  at::Tensor labels = first_of("arr_1", "labels");
  const std::string note = labels.defined() ? "" : unread_arrays(file);
  if (!labels.defined()) labels = at::zeros({images.size(0)}, at::kLong);
  if (labels.dim() == 2 && labels.size(1) == 1) labels = labels.squeeze(1);
  ImageDataset data =
      labelled_images(images.permute({0, 3, 1, 2}).contiguous(), labels, file.string());
  if (!note.empty()) data.notes.push_back(note);
  return data;
}

}  // namespace tiltflow
