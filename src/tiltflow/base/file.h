// Files: whole-file reads, read-only memory maps, and writes that either complete or leave no
// trace.
#pragma once

#include <cstddef>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

namespace tiltflow {

// Throws kBadFile when missing or unreadable, or larger than `limit` bytes.
std::string read_file(const std::filesystem::path& path, std::size_t limit = std::size_t{1} << 32);
// As read_file, decompressing when the content starts with the gzip magic: all members one after
// the other, zero bytes between and after them ignored, anything else there an error, as Python's
// gzip does it. `limit` bounds the decompressed size.
std::string read_file_gz(const std::filesystem::path& path,
                         std::size_t limit = std::size_t{1} << 32);

// Writes to a temporary name beside `path`, fsyncs, renames, fsyncs the folder: `path` has the old
// or the new content.
void write_file_atomic(const std::filesystem::path& path, std::string_view content);
// The same for content in pieces (no copy of large tensors).
void write_file_atomic(const std::filesystem::path& path,
                       const std::vector<std::string_view>& pieces);

void make_directories(const std::filesystem::path& path);
void sync_directory(const std::filesystem::path& path);

// A new folder for files nobody keeps; gone with the object.
class ScratchFolder {
 public:
  explicit ScratchFolder(const std::string& name);
  ~ScratchFolder();
  ScratchFolder(const ScratchFolder&) = delete;
  ScratchFolder& operator=(const ScratchFolder&) = delete;
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

// A file mapped read-only; the mapping lives as long as the object.
class MappedFile {
 public:
  explicit MappedFile(const std::filesystem::path& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  const std::byte* data() const { return data_; }
  std::size_t size() const { return size_; }

 private:
  const std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

// A text file that grows line by line (metrics.jsonl). Opens for appending.
class LineAppender {
 public:
  explicit LineAppender(const std::filesystem::path& path);
  ~LineAppender();
  LineAppender(const LineAppender&) = delete;
  LineAppender& operator=(const LineAppender&) = delete;
  void write(std::string_view bytes);  // as given, no newline added
  void sync();

 private:
  std::filesystem::path path_;
  int fd_;
};

}  // namespace tiltflow
