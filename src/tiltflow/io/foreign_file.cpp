#include "tiltflow/io/foreign_file.h"

#include <algorithm>
#include <cctype>

#include "tiltflow/base/error.h"
#include "tiltflow/base/strings.h"

namespace tiltflow {
namespace {

using namespace std::string_view_literals;

constexpr const char* kUnpack = "unpack it first";
constexpr const char* kExport =
    "save the weights in Python: safetensors.torch.save_file(model.state_dict(), FILE)";
constexpr const char* kDownload =
    "open it in an editor to see what the server said, then download the file again";

struct Signature {
  std::size_t offset;
  std::string_view bytes;
  const char* what;
  const char* hint;
};
constexpr Signature kSignatures[] = {
    {0, "version https://git-lfs.github.com/spec/"sv, "a Git LFS pointer, not the file itself",
     "run `git lfs pull` in its repository, or download the file itself"},
    {0, "/annex/objects/"sv, "a git-annex pointer, not the file itself",
     "run `git annex get` on it"},
    {0, "GGUF"sv, "a GGUF file (quantised weights of llama.cpp and its relatives)",
     "take the model's safetensors"},
    {0, "\x89HDF\r\n\x1a\n"sv, "an HDF5 file (Keras, MATLAB)", kExport},
    {0, "\x93NUMPY"sv, "a NumPy array (.npy)", kExport},
    {0, "\x1f\x8b"sv, "compressed with gzip", "run gunzip on it first"},
    {0, "\x28\xb5\x2f\xfd"sv, "compressed with zstd", kUnpack},
    {0,
     "\xfd"
     "7zXZ"sv,
     "compressed with xz", kUnpack},
    {0, "BZh"sv, "compressed with bzip2", kUnpack},
    {0, "7z\xbc\xaf\x27\x1c"sv, "a 7z archive", kUnpack},
    {0, "Rar!"sv, "a RAR archive", kUnpack},
    {257, "ustar"sv, "a tar archive (PyTorch before 0.1.10 saved such files)",
     "unpack it; a checkpoint that old must be loaded and saved again in Python"},
    {0, "\x89PNG"sv, "a PNG picture", ""},
    {0, "\xff\xd8\xff"sv, "a JPEG picture", ""},
    {0, "GIF8"sv, "a GIF picture", ""},
    {0, "%PDF"sv, "a PDF document", ""},
    {0, "SQLite format 3"sv, "an SQLite database", ""},
};

std::string lower_start(std::string_view head) {
  if (starts_with(head, "\xef\xbb\xbf")) head.remove_prefix(3);
  while (!head.empty() && std::isspace(static_cast<unsigned char>(head[0]))) head.remove_prefix(1);
  std::string out(head.substr(0, 64));
  std::transform(out.begin(), out.end(), out.begin(),
                 [](unsigned char c) { return std::tolower(c); });
  return out;
}

// Printable throughout, and for the most part ASCII.
bool is_text(std::string_view head) {
  const auto printable = [](unsigned char c) { return c >= 32 || (c >= 9 && c <= 13); };
  const auto high =
      std::count_if(head.begin(), head.end(), [](unsigned char c) { return c >= 128; });
  return std::all_of(head.begin(), head.end(), printable) &&
         4 * static_cast<std::size_t>(high) <= head.size();
}

// Protocol buffers begin with the format's version, then the producer's name.
bool looks_like_onnx(std::string_view head) {
  if (head.size() < 8 || head[0] != 8 || head[2] != 0x12) return false;
  const std::string_view producer = head.substr(4);
  return starts_with(producer, "pytorch") || starts_with(producer, "onnx") ||
         starts_with(producer, "tf2onnx") || starts_with(producer, "keras2onnx");
}

// A short map whose first key is a short text of letters.
bool looks_like_msgpack(std::string_view head) {
  if (head.size() < 3) return false;
  const unsigned char map = static_cast<unsigned char>(head[0]);
  const unsigned char text = static_cast<unsigned char>(head[1]);
  if (map < 0x81 || map > 0x8f || text < 0xa1 || text > 0xbf) return false;
  const std::string_view key = head.substr(2, text - 0xa0u);
  return std::all_of(key.begin(), key.end(),
                     [](unsigned char c) { return std::isalnum(c) || c == '_'; });
}

std::string first_line(std::string_view text) {
  const std::string_view line =
      text.substr(0, std::min(text.find_first_of("\r\n"), std::size_t{60}));
  return std::string(line);
}

}  // namespace

bool looks_like_safetensors(std::string_view head) {
  return head.size() > 8 && head[8] == '{' && head.substr(5, 3) == "\0\0\0"sv;
}

ForeignFile foreign_file(std::string_view head) {
  head = head.substr(0, kForeignHead);
  if (looks_like_safetensors(head)) return {};
  if (head.empty()) return {"empty (0 bytes)", "copy or download it again"};
  for (const Signature& s : kSignatures) {
    if (head.size() >= s.offset && starts_with(head.substr(s.offset), s.bytes)) {
      return {s.what, s.hint};
    }
  }
  if (looks_like_onnx(head)) return {"an ONNX graph", kExport};
  if (looks_like_msgpack(head)) return {"a msgpack file (Flax)", kExport};
  const std::string start = lower_start(head);
  for (const char* tag : {"<!doctype html", "<html", "<head", "<!--"}) {
    if (starts_with(start, tag)) return {"a web page (a failed download?)", kDownload};
  }
  if (starts_with(start, "<?xml") || starts_with(start, "<error")) {
    return {"an XML page (a failed download?)", kDownload};
  }
  if (is_text(head)) {
    return {cat("a text file that begins '", first_line(head), "' (a failed download?)"),
            kDownload};
  }
  return {};
}

void refuse_foreign_file(std::string_view head, const std::string& where) {
  const ForeignFile found = foreign_file(head);
  if (!found.what.empty()) fail(ErrorKind::kBadFile, cat(where, " is ", found.what), found.hint);
}

void refuse_foreign_archive(const ZipArchive& archive, const std::string& where) {
  struct Entry {
    const char* pattern;
    const char* what;
    const char* hint;
  };
  static constexpr const char* kState =
      "save the weights alone: torch.save(model.state_dict(), FILE)";
  static constexpr Entry kEntries[] = {
      {"*/constants.pkl", "a TorchScript archive, which holds code", kState},
      {"*serialized_exported_program.*", "an exported program (.pt2), which holds code", kState},
      {"*archive_format", "an exported program (.pt2), which holds code", kState},
      {"*models/*.json", "an exported program (.pt2), which holds code", kState},
      {"*model.weights.h5", "a Keras archive", kExport},
      {"*.npy", "a NumPy archive (.npz)", kExport},
      {"*.safetensors", "a zip archive with a safetensors file in it", kUnpack},
      {"*.pt", "a zip archive with a checkpoint in it", kUnpack},
      {"*.ckpt", "a zip archive with a checkpoint in it", kUnpack},
  };
  for (const std::string& name : archive.names()) {
    for (const Entry& entry : kEntries) {
      if (matches_pattern(name, entry.pattern)) {
        fail(ErrorKind::kBadFile, cat(where, " is ", entry.what), entry.hint);
      }
    }
  }
}

}  // namespace tiltflow
