#include "tests/program/program_server.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <cstdio>

#include "apps/tiltflow/program.h"
#include "tests/support.h"
#include "tiltflow/base/strings.h"

namespace tiltflow::test {
namespace {

constexpr std::size_t kLongestRequest = 1 << 16;

int g_server = -1;  // the tests' end of the socket

void open_as(const std::string& file, int descriptor) {
  const int opened = ::open(file.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
  if (opened < 0 || ::dup2(opened, descriptor) < 0) ::_exit(126);
  ::close(opened);
}

// SIGPROF ends a process at once: nothing handles it.
void be_killed_after(double seconds) {
  itimerval timer{};
  timer.it_value.tv_sec = static_cast<time_t>(seconds);
  timer.it_value.tv_usec = static_cast<suseconds_t>(1e6 * (seconds - std::floor(seconds)));
  ::setitimer(ITIMER_PROF, &timer, nullptr);
}

// A request: file of standard output, file of standard error, limit, words.
[[noreturn]] void answer(std::vector<std::string> request) {
  open_as(request[0], STDOUT_FILENO);
  open_as(request[1], STDERR_FILENO);
  if (::chdir(source_dir().c_str()) != 0) ::_exit(126);
  std::string name = "tiltflow";
  std::vector<char*> argv{name.data()};
  for (std::size_t i = 3; i < request.size(); ++i) argv.push_back(request[i].data());
  const int argc = static_cast<int>(argv.size());
  argv.push_back(nullptr);
  be_killed_after(std::stod(request[2]));
  app::leave(app::program(argc, argv.data()));
}

[[noreturn]] void answer_requests(int socket) {
  std::string bytes(kLongestRequest, '\0');
  while (true) {
    const ssize_t count = ::recv(socket, bytes.data(), bytes.size(), 0);
    if (count <= 0) ::_exit(0);  // the tests have ended
    const pid_t child = ::fork();
    if (child == 0) {
      ::close(socket);
      answer(split(bytes.substr(0, static_cast<std::size_t>(count)), '\0'));
    }
    int status = -1;
    ::waitpid(child, &status, 0);
    ::send(socket, &status, sizeof status, 0);
  }
}

bool wanted() {
  const ::testing::UnitTest& tests = *::testing::UnitTest::GetInstance();
  for (int i = 0; i < tests.total_test_suite_count(); ++i) {
    const ::testing::TestSuite& suite = *tests.GetTestSuite(i);
    if (suite.should_run() && starts_with(suite.name(), "program_")) return true;
  }
  return false;
}

// Before the first test: threads do not survive a fork, and tests make some.
class ProgramServer final : public ::testing::Environment {
 public:
  void SetUp() override {
    if (!wanted()) return;
    int ends[2];
    ASSERT_EQ(::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends), 0);
    std::fflush(nullptr);
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      ::close(ends[0]);
      answer_requests(ends[1]);
    }
    ::close(ends[1]);
    g_server = ends[0];
    server_ = child;
  }
  void TearDown() override {
    if (server_ == 0) return;
    ::close(g_server);
    ::waitpid(server_, nullptr, 0);
  }

 private:
  pid_t server_ = 0;
};

[[maybe_unused]] const ::testing::Environment* const kProgramServer =
    ::testing::AddGlobalTestEnvironment(new ProgramServer);

}  // namespace

int serve(const std::vector<std::string>& words, const std::filesystem::path& out,
          const std::filesystem::path& err, double limit) {
  std::string request = out.string() + '\0' + err.string() + '\0' + cat(limit);
  for (const std::string& word : words) request += '\0' + word;
  int status = -1;
  const bool sent = ::send(g_server, request.data(), request.size(), 0) > 0;
  if (!sent || ::recv(g_server, &status, sizeof status, 0) != sizeof status) {
    ADD_FAILURE() << "the server of the program's runs is gone";
  }
  return status;
}

}  // namespace tiltflow::test
