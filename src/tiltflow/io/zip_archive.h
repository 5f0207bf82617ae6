// Zip archives as PyTorch writes them: entries by name, read from a memory map; zip64; stored or
// deflated. Untrusted input: every offset and size is checked before use.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "tiltflow/base/file.h"

namespace tiltflow {

bool looks_like_zip(std::string_view bytes);

class ZipArchive {
 public:
  // `file` must outlive the archive. Throws kBadFile.
  ZipArchive(const MappedFile& file, std::string where);
  std::vector<std::string> names() const;
  bool contains(const std::string& name) const { return entries_.count(name) != 0; }
  // Bytes of a stored entry, inside the map. Throws kBadFile for unknown or compressed entries and
  // for a wrong checksum.
  std::string_view stored(const std::string& name) const;
  // Content of any entry of at most `limit` bytes.
  std::string read(const std::string& name, std::size_t limit) const;

 private:
  struct Entry {
    std::uint64_t offset, packed, size;
    std::uint32_t checksum;
    std::uint16_t method;
  };
  // Where the central directory stands, in bytes of the file.
  struct Directory {
    std::uint64_t count, size, offset;
  };
  [[noreturn]] void bad(const std::string& why) const;
  void need(std::uint64_t offset, std::uint64_t n) const;
  std::size_t find_end() const;
  Directory find_directory() const;
  std::uint64_t read_entry(std::uint64_t offset);
  void widen(Entry& entry, const std::string& name, std::uint64_t at, std::uint64_t stop) const;
  const Entry& entry(const std::string& name) const;
  std::string_view packed_bytes(const std::string& name, const Entry& entry) const;
  std::string_view bytes_;
  std::string where_;
  std::map<std::string, Entry> entries_;
};

// One entry of an archive to be written; `data` must stay alive until the write returns.
struct ZipPiece {
  std::string name;
  std::string_view data;
};
// Atomic. Entries are stored, every payload starts at a multiple of 64 bytes; zip64 records where
// sizes need them.
void write_zip(const std::filesystem::path& path, const std::vector<ZipPiece>& pieces);

}  // namespace tiltflow
