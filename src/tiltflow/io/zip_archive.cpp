#include "tiltflow/io/zip_archive.h"

#include <zlib.h>

#include <algorithm>
#include <cstring>
#include <deque>
#include <limits>

#include "tiltflow/base/error.h"
#include "tiltflow/base/strings.h"

namespace tiltflow {
namespace {

constexpr std::uint32_t kLocal = 0x04034b50;
constexpr std::uint32_t kCentral = 0x02014b50;
constexpr std::uint32_t kEnd = 0x06054b50;
constexpr std::uint32_t kEnd64 = 0x06064b50;
constexpr std::uint32_t kLocator64 = 0x07064b50;
constexpr std::uint32_t kMax32 = 0xffffffffu;
constexpr std::size_t kAlignment = 64;
constexpr std::size_t kMaxEntries = 10'000'000;

std::uint64_t little(std::string_view bytes, std::size_t offset, std::size_t width) {
  std::uint64_t value = 0;
  for (std::size_t i = 0; i < width; ++i) {
    value |= static_cast<std::uint64_t>(static_cast<unsigned char>(bytes[offset + i])) << (8 * i);
  }
  return value;
}

std::uint32_t crc32_of(std::string_view data) {
  uLong crc = ::crc32(0, nullptr, 0);
  while (!data.empty()) {
    const std::size_t n = std::min<std::size_t>(data.size(), std::size_t{1} << 30);
    crc = ::crc32(crc, reinterpret_cast<const Bytef*>(data.data()), static_cast<uInt>(n));
    data.remove_prefix(n);
  }
  return static_cast<std::uint32_t>(crc);
}

void put(std::string& out, std::uint64_t value, std::size_t width) {
  for (std::size_t i = 0; i < width; ++i) out += static_cast<char>(value >> (8 * i) & 0xff);
}

}  // namespace

bool looks_like_zip(std::string_view bytes) {
  return bytes.size() >= 22 && little(bytes, 0, 4) == kLocal;
}

ZipArchive::ZipArchive(const MappedFile& file, std::string where)
    : bytes_(reinterpret_cast<const char*>(file.data()), file.size()), where_(std::move(where)) {
  const Directory directory = find_directory();
  need(directory.offset, directory.size);
  if (directory.count > kMaxEntries) bad("lists too many zip entries");
  std::uint64_t offset = directory.offset;
  for (std::uint64_t i = 0; i < directory.count; ++i) offset = read_entry(offset);
}

void ZipArchive::bad(const std::string& why) const {
  fail(ErrorKind::kBadFile, cat(where_, ": ", why), "is the file complete?");
}

// Refuses records that leave the file.
void ZipArchive::need(std::uint64_t offset, std::uint64_t n) const {
  if (offset > bytes_.size() || n > bytes_.size() - offset) {
    bad("the zip directory leaves the file");
  }
}

// The end record: behind it stands a comment of at most 65535 bytes.
std::size_t ZipArchive::find_end() const {
  if (bytes_.size() < 22) bad("too short for a zip archive");
  std::size_t end = bytes_.size() - 22;
  const std::size_t lowest = end > 65535 ? end - 65535 : 0;
  while (little(bytes_, end, 4) != kEnd) {
    if (end == lowest) {
      bad(cat("has no zip directory at the end of its ", bytes_.size(), " bytes (truncated?)"));
    }
    --end;
  }
  return end;
}

ZipArchive::Directory ZipArchive::find_directory() const {
  const std::size_t end = find_end();
  Directory directory{little(bytes_, end + 10, 2), little(bytes_, end + 12, 4),
                      little(bytes_, end + 16, 4)};
  if (end >= 20 && little(bytes_, end - 20, 4) == kLocator64) {
    const std::uint64_t at = little(bytes_, end - 12, 8);
    need(at, 56);
    if (little(bytes_, at, 4) != kEnd64) bad("has a broken zip64 directory");
    directory.count = little(bytes_, at + 32, 8);
    directory.size = little(bytes_, at + 40, 8);
    directory.offset = little(bytes_, at + 48, 8);
  }
  return directory;
}

// One record of the directory; returns where the next one begins.
std::uint64_t ZipArchive::read_entry(std::uint64_t offset) {
  need(offset, 46);
  if (little(bytes_, offset, 4) != kCentral) bad("has a broken zip directory");
  const std::uint64_t name_size = little(bytes_, offset + 28, 2);
  const std::uint64_t extra_size = little(bytes_, offset + 30, 2);
  const std::uint64_t comment_size = little(bytes_, offset + 32, 2);
  need(offset + 46, name_size + extra_size + comment_size);
  Entry entry{little(bytes_, offset + 42, 4), little(bytes_, offset + 20, 4),
              little(bytes_, offset + 24, 4),
              static_cast<std::uint32_t>(little(bytes_, offset + 16, 4)),
              static_cast<std::uint16_t>(little(bytes_, offset + 10, 2))};
  if (little(bytes_, offset + 8, 2) & 1) bad("holds encrypted zip entries");
  const std::string name(bytes_.substr(offset + 46, name_size));
  const std::uint64_t extra = offset + 46 + name_size;
  widen(entry, name, extra, extra + extra_size);
  if (!entries_.emplace(name, entry).second) bad(cat("has two zip entries named '", name, "'"));
  return extra + extra_size + comment_size;
}

// zip64 extra field: the 64-bit values of those that read 0xffffffff, in this order.
void ZipArchive::widen(Entry& entry, const std::string& name, std::uint64_t at,
                       std::uint64_t stop) const {
  while (at + 4 <= stop) {
    const std::uint64_t id = little(bytes_, at, 2);
    const std::uint64_t length = little(bytes_, at + 2, 2);
    if (length > stop - at - 4) bad(cat("has a broken extra field of zip entry '", name, "'"));
    std::uint64_t field = at + 4;
    const std::uint64_t field_end = field + length;
    for (std::uint64_t* value : {&entry.size, &entry.packed, &entry.offset}) {
      if (id != 1 || *value != kMax32 || field + 8 > field_end) continue;
      *value = little(bytes_, field, 8);
      field += 8;
    }
    at = field_end;
  }
}

std::vector<std::string> ZipArchive::names() const {
  std::vector<std::string> out;
  for (const auto& [name, entry] : entries_) out.push_back(name);
  return out;
}

const ZipArchive::Entry& ZipArchive::entry(const std::string& name) const {
  const auto found = entries_.find(name);
  if (found == entries_.end()) {
    fail(ErrorKind::kBadFile, cat(where_, ": has no entry '", name, "'"));
  }
  return found->second;
}

std::string_view ZipArchive::packed_bytes(const std::string& name, const Entry& entry) const {
  const auto outside = [&] {
    fail(ErrorKind::kBadFile, cat(where_, ": zip entry '", name, "' leaves the file (truncated?)"));
  };
  if (entry.offset > bytes_.size() || bytes_.size() - entry.offset < 30) outside();
  if (little(bytes_, entry.offset, 4) != kLocal) {
    fail(ErrorKind::kBadFile,
         cat(where_, ": zip entry '", name, "' has no header where the directory says"));
  }
  const std::uint64_t begin = entry.offset + 30 + little(bytes_, entry.offset + 26, 2) +
                              little(bytes_, entry.offset + 28, 2);
  if (begin > bytes_.size() || entry.packed > bytes_.size() - begin) outside();
  return bytes_.substr(begin, entry.packed);
}

std::string_view ZipArchive::stored(const std::string& name) const {
  const Entry& e = entry(name);
  if (e.method != 0 || e.packed != e.size) {
    fail(ErrorKind::kBadFile,
         cat(where_, ": zip entry '", name, "' is compressed; PyTorch stores them plainly"));
  }
  const std::string_view data = packed_bytes(name, e);
  if (crc32_of(data) != e.checksum) {
    fail(ErrorKind::kBadFile, cat(where_, ": zip entry '", name, "' fails its checksum"),
         "the file is damaged; copy it again");
  }
  return data;
}

std::string ZipArchive::read(const std::string& name, std::size_t limit) const {
  const Entry& e = entry(name);
  if (e.size > limit) {
    fail(ErrorKind::kBadFile, cat(where_, ": zip entry '", name, "' of ", e.size,
                                  " bytes exceeds the limit of ", limit));
  }
  if (e.method == 0) return std::string(stored(name));
  if (e.method != Z_DEFLATED) {
    fail(ErrorKind::kBadFile,
         cat(where_, ": zip entry '", name, "' uses the unknown compression ", e.method));
  }
  const std::string_view packed = packed_bytes(name, e);
  constexpr std::uint64_t kBestRatio = 1032;  // of deflate: what promises more is damaged
  if (e.size / kBestRatio > packed.size()) {
    fail(ErrorKind::kBadFile, cat(where_, ": zip entry '", name, "' is damaged"));
  }
  if (std::max<std::uint64_t>(packed.size(), e.size) > std::numeric_limits<uInt>::max()) {
    fail(ErrorKind::kBadFile, cat(where_, ": zip entry '", name, "' is too large"));
  }
  std::string out(static_cast<std::size_t>(e.size), '\0');
  z_stream stream{};
  if (inflateInit2(&stream, -MAX_WBITS) != Z_OK) fail(ErrorKind::kFailure, "zlib could not start");
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(packed.data()));
  stream.avail_in = static_cast<uInt>(packed.size());
  stream.next_out = reinterpret_cast<Bytef*>(out.data());
  stream.avail_out = static_cast<uInt>(out.size());
  const int status = inflate(&stream, Z_FINISH);
  inflateEnd(&stream);
  if (status != Z_STREAM_END || stream.avail_out != 0 || crc32_of(out) != e.checksum) {
    fail(ErrorKind::kBadFile, cat(where_, ": zip entry '", name, "' is damaged"));
  }
  return out;
}

namespace {

// One entry of an archive that is being written.
struct WrittenEntry {
  const std::string& name;
  std::uint64_t size;
  std::uint64_t offset;
  std::uint32_t checksum;

  bool wide() const { return size >= kMax32; }
  bool far() const { return offset >= kMax32; }
  std::uint64_t short_size() const { return wide() ? kMax32 : size; }
  std::uint64_t short_offset() const { return far() ? kMax32 : offset; }
};

// What the local header and the directory say alike: flags, no date, checksum and sizes.
void put_description(std::string& out, const WrittenEntry& entry) {
  put(out, 0x800, 2);
  put(out, 0, 2);
  put(out, 0, 4);
  put(out, entry.checksum, 4);
  put(out, entry.short_size(), 4);
  put(out, entry.short_size(), 4);
  put(out, entry.name.size(), 2);
}

// The header before the data; the extra field "FB" fills up to the alignment.
std::string local_header(const WrittenEntry& entry) {
  const bool wide = entry.wide();
  const std::size_t fixed = 30 + entry.name.size() + (wide ? 20 : 0) + 4;
  const std::size_t padding = (kAlignment - (entry.offset + fixed) % kAlignment) % kAlignment;
  std::string out;
  put(out, kLocal, 4);
  put(out, wide ? 45 : 20, 2);
  put_description(out, entry);
  put(out, (wide ? 20 : 0) + 4 + padding, 2);
  out += entry.name;
  if (wide) {
    put(out, 1, 2);
    put(out, 16, 2);
    put(out, entry.size, 8);
    put(out, entry.size, 8);
  }
  out += "FB";
  put(out, padding, 2);
  out.append(padding, 'Z');
  return out;
}

void put_directory_entry(std::string& out, const WrittenEntry& entry) {
  const bool wide = entry.wide();
  const bool far = entry.far();
  const std::size_t extra = wide || far ? 4 + (wide ? 16 : 0) + (far ? 8 : 0) : 0;
  put(out, kCentral, 4);
  put(out, 45, 2);
  put(out, wide || far ? 45 : 20, 2);
  put_description(out, entry);
  put(out, extra, 2);
  put(out, 0, 2);
  put(out, 0, 2);
  put(out, 0, 2);
  put(out, 0, 4);
  put(out, entry.short_offset(), 4);
  out += entry.name;
  if (!extra) return;
  put(out, 1, 2);
  put(out, extra - 4, 2);
  if (wide) {
    put(out, entry.size, 8);
    put(out, entry.size, 8);
  }
  if (far) put(out, entry.offset, 8);
}

// Closes the directory of `count` entries, which begins at `begin`.
void put_directory_end(std::string& directory, std::uint64_t begin, std::uint64_t count) {
  const std::uint64_t length = directory.size();
  if (begin >= kMax32 || length >= kMax32 || count >= 0xffff) {
    put(directory, kEnd64, 4);
    put(directory, 44, 8);
    put(directory, 45, 2);
    put(directory, 45, 2);
    put(directory, 0, 4);
    put(directory, 0, 4);
    put(directory, count, 8);
    put(directory, count, 8);
    put(directory, length, 8);
    put(directory, begin, 8);
    put(directory, kLocator64, 4);
    put(directory, 0, 4);
    put(directory, begin + length, 8);
    put(directory, 1, 4);
  }
  put(directory, kEnd, 4);
  put(directory, 0, 4);
  put(directory, std::min<std::uint64_t>(count, 0xffff), 2);
  put(directory, std::min<std::uint64_t>(count, 0xffff), 2);
  put(directory, std::min<std::uint64_t>(length, kMax32), 4);
  put(directory, std::min<std::uint64_t>(begin, kMax32), 4);
  put(directory, 0, 2);
}

}  // namespace

void write_zip(const std::filesystem::path& path, const std::vector<ZipPiece>& pieces) {
  std::deque<std::string> headers;  // stay alive until the file is written
  std::vector<std::string_view> content;
  std::string directory;
  std::uint64_t position = 0;
  for (const ZipPiece& piece : pieces) {
    const WrittenEntry entry{piece.name, piece.data.size(), position, crc32_of(piece.data)};
    headers.push_back(local_header(entry));
    content.push_back(headers.back());
    content.push_back(piece.data);
    position += headers.back().size() + entry.size;
    put_directory_entry(directory, entry);
  }
  put_directory_end(directory, position, pieces.size());
  content.push_back(directory);
  write_file_atomic(path, content);
}

}  // namespace tiltflow
