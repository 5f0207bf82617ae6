// Outputs of all kinds: what is replaced, what is written through, what is left when something
// fails.
#include <fcntl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <csignal>
#include <thread>

#include "tests/support.h"
#include "tiltflow/base/file.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/base/temporary_file.h"

namespace {
int g_sync_error = 0;  // what fsync answers; 0: nothing, at once
}

// Stands in front of the system's fsync in this binary. What tests write need not survive a power
// cut, and half their time was spent waiting for disks.
extern "C" int fsync(int fd) {
  if (g_sync_error == 0 && ::fcntl(fd, F_GETFD) >= 0) return 0;
  errno = g_sync_error == 0 ? EBADF : g_sync_error;
  return -1;
}

namespace tiltflow {
namespace {

namespace fs = std::filesystem;

std::ptrdiff_t entries(const fs::path& folder) {
  return std::distance(fs::directory_iterator(folder), {});
}

mode_t mode_of(const fs::path& file) {
  struct stat info{};
  return ::lstat(file.c_str(), &info) == 0 ? info.st_mode : 0;
}

}  // namespace

TEST(base_file, LinksStayLinks) {
  const test::TempDir dir;
  fs::create_directories(dir / "store");
  write_file_atomic(dir / "store/real", "old");
  fs::create_symlink("store/real", dir / "link");
  fs::create_symlink("link", dir / "link to a link");
  write_file_atomic(dir / "link to a link", "new");
  EXPECT_EQ(read_file(dir / "store/real"), "new");
  EXPECT_TRUE(fs::is_symlink(dir / "link"));
  EXPECT_TRUE(fs::is_symlink(dir / "link to a link"));
  fs::create_symlink("store/later", dir / "dangling");
  write_file_atomic(dir / "dangling", "first");
  EXPECT_EQ(read_file(dir / "store/later"), "first");
  fs::create_symlink("circle", dir / "circle");
  test::expect_error(ErrorKind::kFailure, "circle",
                     [&] { write_file_atomic(dir / "circle", "x"); });
  EXPECT_EQ(entries(dir / "store"), 2);
}

TEST(base_file, PipesAndDevicesAreWrittenThrough) {
  const test::TempDir dir;
  ASSERT_EQ(::mkfifo((dir / "pipe").c_str(), 0600), 0);
  std::string got;
  std::thread reader([&] { got = read_file(dir / "pipe"); });
  write_file_atomic(dir / "pipe", "through");
  reader.join();
  EXPECT_EQ(got, "through");
  EXPECT_TRUE(S_ISFIFO(mode_of(dir / "pipe")));
  fs::create_symlink("/dev/null", dir / "null");
  write_file_atomic(dir / "null", "nowhere");
  EXPECT_TRUE(fs::is_symlink(dir / "null"));
  EXPECT_TRUE(S_ISCHR(mode_of("/dev/null")));
  test::expect_error(ErrorKind::kFailure, "No space left",
                     [&] { write_file_atomic("/dev/full", "x"); });
  EXPECT_TRUE(S_ISCHR(mode_of("/dev/full")));
  EXPECT_EQ(entries(dir.path()), 2);
}

TEST(base_file, DescriptorsAreWrittenThrough) {
  int ends[2];
  ASSERT_EQ(::pipe(ends), 0);
  for (const char* folder : {"/dev/fd/", "/proc/self/fd/"}) {
    write_file_atomic(cat(folder, ends[1]), "ab");
    char text[2];
    ASSERT_EQ(::read(ends[0], text, 2), 2);
    EXPECT_EQ(std::string(text, 2), "ab");
  }
  ::close(ends[0]);
  ::close(ends[1]);
}

TEST(base_file, SocketsAndFoldersAreRefused) {
  const test::TempDir dir;
  const int server = ::socket(AF_UNIX, SOCK_STREAM, 0);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::snprintf(address.sun_path, sizeof address.sun_path, "%s", (dir / "socket").c_str());
  ASSERT_EQ(::bind(server, reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
  test::expect_error(ErrorKind::kFailure, "socket",
                     [&] { write_file_atomic(dir / "socket", "x"); });
  EXPECT_TRUE(S_ISSOCK(mode_of(dir / "socket")));
  test::expect_error(ErrorKind::kFailure, "Is a directory",
                     [&] { write_file_atomic(dir.path(), "x"); });
  test::expect_error(ErrorKind::kFailure, "Is a directory",
                     [&] { write_file_atomic(dir.path() / "", "x"); });
  test::expect_error(ErrorKind::kFailure, "No such file",
                     [&] { write_file_atomic(dir / "missing/x", "x"); });
  EXPECT_EQ(entries(dir.path()), 1);
  ::close(server);
}

TEST(base_file, NamesAsLongAsTheSystemAllows) {
  const test::TempDir dir;
  const std::string name(255, 'x');
  write_file_atomic(dir / name, "long");
  EXPECT_EQ(read_file(dir / name), "long");
  test::expect_error(ErrorKind::kFailure, "too long",
                     [&] { write_file_atomic(dir / (name + "x"), "x"); });
  EXPECT_EQ(entries(dir.path()), 1);
}

TEST(base_file, ModesAreKeptAndNewFilesFollowTheUmask) {
  const test::TempDir dir;
  const mode_t before = ::umask(027);
  write_file_atomic(dir / "new", "x");
  EXPECT_EQ(mode_of(dir / "new") & 07777, 0640u);
  ::chmod((dir / "new").c_str(), 0604);
  write_file_atomic(dir / "new", "y");
  ::umask(before);
  EXPECT_EQ(mode_of(dir / "new") & 07777, 0604u);
}

// A size limit stands for a full disk: the write fails half-way.
TEST(base_file, AFailedWriteLeavesTheOldFileAndNothingElse) {
  const test::TempDir dir;
  write_file_atomic(dir / "a", "old");
  rlimit before{};
  ::getrlimit(RLIMIT_FSIZE, &before);
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  const rlimit small{1000, before.rlim_max};
  ::setrlimit(RLIMIT_FSIZE, &small);
  test::expect_error(ErrorKind::kFailure, "File too large",
                     [&] { write_file_atomic(dir / "a", std::string(5000, 'x')); });
  ::setrlimit(RLIMIT_FSIZE, &before);
  std::signal(SIGXFSZ, handler);
  EXPECT_EQ(read_file(dir / "a"), "old");
  EXPECT_EQ(entries(dir.path()), 1);
}

TEST(base_file, FileSystemsWithoutSyncAreWarnedAboutOnce) {
  const test::TempDir dir;
  testing::internal::CaptureStderr();
  for (const int code : {EINVAL, ENOSYS, EOPNOTSUPP}) {
    g_sync_error = code;
    write_file_atomic(dir / "a", cat(code));
    EXPECT_EQ(read_file(dir / "a"), cat(code));
  }
  const std::string said = testing::internal::GetCapturedStderr();
  EXPECT_EQ(said.find("cannot sync"), said.rfind("cannot sync")) << said;
  EXPECT_NE(said.find("cannot sync"), std::string::npos);
  g_sync_error = EIO;
  test::expect_error(ErrorKind::kFailure, "Input/output error",
                     [&] { write_file_atomic(dir / "a", "new"); });
  g_sync_error = 0;
  EXPECT_EQ(read_file(dir / "a"), cat(EOPNOTSUPP)) << "a disk error must not replace the file";
  EXPECT_EQ(entries(dir.path()), 1);
}

// Only what a process of this machine has left that is surely gone.
TEST(base_file, LeftoversOfKilledProcessesAreRemoved) {
  const test::TempDir dir;
  const pid_t child = ::fork();
  if (child == 0) {
    TemporaryFile file(dir.path());
    ::_exit(file.open(0600));  // without the destructor, as a kill
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  ASSERT_EQ(status, 0);
  ASSERT_EQ(entries(dir.path()), 1);
  const std::string left = fs::directory_iterator(dir.path())->path().filename().string();
  TemporaryFile alive(dir.path());
  ASSERT_EQ(alive.open(0600), 0);
  const std::string other_machine = cat(".tiltflow-00000000", left.substr(left.find('-', 10)));
  for (const std::string& foreign :
       {other_machine, left + ".txt", std::string(".tiltflow-mine.tmp"), std::string("a.tmp")}) {
    std::fclose(std::fopen((dir / foreign).c_str(), "w"));
  }
  write_file_atomic(dir / "a", "x");
  EXPECT_FALSE(fs::exists(dir / left)) << "left by a process that is gone";
  EXPECT_EQ(entries(dir.path()), 6) << "a running process's file, foreign files and the new one";
}

TEST(base_file, AtomicWriteKeepsTheOldFileOnFailure) {
  const test::TempDir dir;
  write_file_atomic(dir / "a", "old");
  EXPECT_EQ(read_file(dir / "a"), "old");
  test::expect_error(ErrorKind::kFailure, "cannot",
                     [&] { write_file_atomic(dir / "missing/a", "new"); });
  test::expect_error(ErrorKind::kFailure, "cannot",
                     [&] { write_file_atomic(dir.path(), "a folder is in the way"); });
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(dir.path()), {}), 1)
      << "a temporary file was left behind";
}

TEST(base_file, BrokenGzipIsAnError) {
  const test::TempDir dir;
  write_file_atomic(dir / "a.gz", std::string("\x1f\x8b\x08\x00garbage", 11));
  test::expect_error(ErrorKind::kBadFile, "gzip", [&] { read_file_gz(dir / "a.gz"); });
  test::expect_error(ErrorKind::kBadFile, "cannot open", [&] { read_file(dir / "none"); });
}

}  // namespace tiltflow
