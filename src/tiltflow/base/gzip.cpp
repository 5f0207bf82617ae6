#include <zlib.h>

#include "tiltflow/base/error.h"
#include "tiltflow/base/file.h"
#include "tiltflow/base/strings.h"

namespace tiltflow {
namespace {

bool is_gzip(std::string_view bytes) { return bytes.substr(0, 2) == "\x1f\x8b"; }

class GzipMembers {
 public:
  GzipMembers(std::string_view raw, std::size_t limit, const std::string& name)
      : raw_(raw), limit_(limit), name_(name) {
    if (inflateInit2(&stream_, 16 + MAX_WBITS) != Z_OK) {
      fail(ErrorKind::kFailure, "zlib could not start");
    }
  }
  ~GzipMembers() { inflateEnd(&stream_); }
  GzipMembers(const GzipMembers&) = delete;
  GzipMembers& operator=(const GzipMembers&) = delete;

  std::string read() {
    while (!raw_.empty()) {
      if (!is_gzip(raw_)) bad("bytes after the gzip data that are none");
      read_member();
      const std::size_t next = raw_.find_first_not_of('\0');  // padding of tapes and block devices
      raw_.remove_prefix(next == std::string_view::npos ? raw_.size() : next);
    }
    return std::move(content_);
  }

 private:
  [[noreturn]] void bad(const std::string& what) const {
    fail(ErrorKind::kBadFile, cat(name_, ": ", what));
  }

  void read_member() {
    inflateReset(&stream_);
    int status = Z_OK;
    while (status != Z_STREAM_END) {
      stream_.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(raw_.data()));
      stream_.avail_in =
          static_cast<uInt>(std::min<std::size_t>(raw_.size(), std::size_t{1} << 30));
      stream_.next_out = reinterpret_cast<Bytef*>(buffer_);
      stream_.avail_out = sizeof buffer_;
      const uInt given = stream_.avail_in;
      status = inflate(&stream_, Z_NO_FLUSH);
      const std::size_t got = sizeof buffer_ - stream_.avail_out;
      const std::size_t used = given - stream_.avail_in;
      raw_.remove_prefix(used);
      if (status != Z_OK && status != Z_STREAM_END) bad("broken or truncated gzip data");
      if (status == Z_OK && got == 0 && used == 0) bad("truncated gzip data");
      if (content_.size() + got > limit_) {
        bad(cat("decompressed, it is larger than the allowed ", limit_, " bytes"));
      }
      content_.append(buffer_, got);
    }
  }

  std::string_view raw_;
  std::size_t limit_;
  const std::string& name_;
  z_stream stream_{};
  std::string content_;
  char buffer_[1 << 16];
};

}  // namespace

std::string read_file_gz(const std::filesystem::path& path, std::size_t limit) {
  std::string raw = read_file(path, limit);
  if (!is_gzip(raw)) return raw;
  return GzipMembers(raw, limit, path.string()).read();
}

}  // namespace tiltflow
