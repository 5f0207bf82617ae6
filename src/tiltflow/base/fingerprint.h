// What identifies the content of a file or a folder, wherever it lies and whatever its dates say.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace tiltflow {

// What of a path is read.
enum class PathKind {
  kAll,      // the file; a folder: all in it, of a divided data set train, test and lists
  kWeights,  // a file with its shards and the config.json beside it; a folder: its weight files and
             // their JSON files
};

struct FileFingerprint {
  std::string name;  // relative to the path; "" for the path itself
  std::uint64_t bytes = 0;
  std::string sha256;
  bool operator==(const FileFingerprint&) const = default;
};

struct Fingerprint {
  std::string path;  // absolute, as it was read
  std::string
      sha256;  // of the file, or of the list of files; empty when there is nothing at the path
  std::uint64_t bytes = 0;
  std::vector<FileFingerprint>
      files;  // of a folder or a file with others beside it; left out above kListedFiles
};
constexpr std::size_t kListedFiles = 200;

// Cost: reads everything once, at the speed of SHA-256. What is larger than 64 MB is read once per
// state of the files: the sums are kept in the user's cache folder by device, inode, size and both
// dates. Throws kBadFile for what cannot be read, kStopped on a signal.
Fingerprint fingerprint_of(const std::filesystem::path& path, PathKind kind);

// "" when both have one content, else in words what differs: "weights.safetensors has another
// content".
std::string difference(const Fingerprint& before, const Fingerprint& now);

}  // namespace tiltflow
