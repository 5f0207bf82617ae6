#include "standard_streams.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <iostream>
#include <streambuf>

#include "tiltflow/base/signals.h"

namespace tiltflow::app {
namespace {

class OutputBuffer final : public std::streambuf {
 public:
  OutputBuffer() { setp(buffer_, buffer_ + sizeof buffer_); }
  int failure() const { return failure_; }  // an error number, 0: none

 protected:
  int_type overflow(int_type c) override {
    write_out();
    if (!traits_type::eq_int_type(c, traits_type::eof())) sputc(traits_type::to_char_type(c));
    return traits_type::not_eof(c);
  }
  int sync() override {
    write_out();
    return failure_ == 0 ? 0 : -1;
  }

 private:
  // After a failure the rest is dropped.
  void write_out() {
    const char* at = pbase();
    while (failure_ == 0 && at < pptr()) {
      const ssize_t n = ::write(STDOUT_FILENO, at, static_cast<std::size_t>(pptr() - at));
      if (n > 0) at += n;
      if (n < 0 && errno != EINTR && errno != EAGAIN) failure_ = errno;
      if (n < 0 && errno == EAGAIN) ::usleep(1000);
    }
    if (failure_ == EPIPE) request_stop(SIGPIPE);
    setp(buffer_, buffer_ + sizeof buffer_);
  }

  char buffer_[1 << 14];
  int failure_ = 0;
};

OutputBuffer& output() {
  static auto* buffer =
      new OutputBuffer;  // std::cout is flushed after everything else is destroyed
  return *buffer;
}

}  // namespace

void open_standard_descriptors() {
  for (int fd = 0; fd <= 2; ++fd) {
    if (::fcntl(fd, F_GETFD) >= 0 || errno != EBADF) continue;
    const int opened = ::open("/dev/null", fd == 0 ? O_RDONLY : O_WRONLY);
    if (opened < 0 || opened == fd) continue;
    ::dup2(opened, fd);
    ::close(opened);
  }
}

void check_standard_output() { std::cout.rdbuf(&output()); }

int finish_standard_output(int code) {
  std::cout.flush();
  int failure = output().failure();
  // Network file systems report a full disk here.
  if (failure == 0 && ::close(STDOUT_FILENO) != 0 && errno != EBADF) failure = errno;
  if (failure == EPIPE) return 128 + SIGPIPE;
  if (failure == 0) return code;
  std::fprintf(stderr, "error: write error: %s\n", std::strerror(failure));
  return code == 0 ? 1 : code;
}

}  // namespace tiltflow::app
