#include "tiltflow/io/npz.h"

#include <algorithm>
#include <deque>

#include "tiltflow/base/error.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/io/npy.h"
#include "tiltflow/io/zip_archive.h"
#include "tiltflow/tensor/aten.h"

namespace tiltflow {
namespace {

constexpr std::string_view kSuffix = ".npy";

std::string_view text_of(const MappedFile& file) {
  return {reinterpret_cast<const char*>(file.data()), file.size()};
}

std::vector<std::string> arrays_in(const ZipArchive& archive) {
  std::vector<std::string> out;
  for (const std::string& entry : archive.names()) {
    if (ends_with(entry, kSuffix)) out.push_back(entry.substr(0, entry.size() - kSuffix.size()));
  }
  return out;
}

ZipArchive open_archive(const MappedFile& file, const std::filesystem::path& path) {
  if (!looks_like_zip(text_of(file))) {
    fail(ErrorKind::kBadFile, cat(path.string(), ": not an npz archive"));
  }
  return ZipArchive(file, path.string());
}

}  // namespace

std::vector<std::string> npz_names(const std::filesystem::path& path) {
  const MappedFile file(path);
  if (starts_with(text_of(file), kNpyMagic)) return {"arr_0"};
  return arrays_in(open_archive(file, path));
}

ParameterSet read_npz(const std::filesystem::path& path, const std::vector<std::string>& wanted) {
  const MappedFile file(path);
  ParameterSet out;
  if (starts_with(text_of(file), kNpyMagic)) {
    out.add("arr_0", parse_npy(text_of(file), path.string()));
    return out;
  }
  const ZipArchive archive = open_archive(file, path);
  for (const std::string& name : arrays_in(archive)) {
    const bool asked =
        wanted.empty() || std::find(wanted.begin(), wanted.end(), name) != wanted.end();
    if (asked) {
      out.add(name, parse_npy(archive.read(cat(name, kSuffix), kMaxNpyBytes),
                              cat(path.string(), ": ", name)));
    }
  }
  return out;
}

void write_npz(const std::filesystem::path& path, const ParameterSet& arrays) {
  std::deque<std::string> files;  // alive until written
  std::vector<ZipPiece> pieces;
  for (const auto& [name, tensor] : arrays) {
    const at::Tensor x = tensor.contiguous().cpu();
    std::string file = npy_header(x);
    file.append(static_cast<const char*>(x.data_ptr()), x.nbytes());
    files.push_back(std::move(file));
    pieces.push_back({cat(name, kSuffix), files.back()});
  }
  write_zip(path, pieces);
}

}  // namespace tiltflow
