#include "tiltflow/bench/startup_speed.h"

#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <filesystem>

#include "tiltflow/base/error.h"
#include "tiltflow/base/file.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/bench/network_speed.h"
#include "tiltflow/models/model_file.h"

extern char** environ;

namespace tiltflow {
namespace {

// Seconds from start to exit; its output goes nowhere. Throws kFailure when it fails.
double seconds_of(const std::vector<std::string>& arguments) {
  std::vector<std::string> words{"tiltflow"};
  words.insert(words.end(), arguments.begin(), arguments.end());
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  for (const int stream : {1, 2}) {
    posix_spawn_file_actions_addopen(&actions, stream, "/dev/null", O_WRONLY, 0);
  }
  const auto begin = std::chrono::steady_clock::now();
  pid_t child = 0;
  const int failed = ::posix_spawn(&child, std::filesystem::read_symlink("/proc/self/exe").c_str(),
                                   &actions, nullptr, argv.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  int status = 0;
  if (failed || ::waitpid(child, &status, 0) != child || status != 0) {
    fail(ErrorKind::kFailure, cat("`", join(words, " "), "` did not run"));
  }
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

}  // namespace

nlohmann::ordered_json bench_startup(std::int64_t repeats) {
  const ScratchFolder folder("tiltflow-bench");
  const std::string model = (folder.path() / "tiny.safetensors").string();
  const std::string recipe = (folder.path() / "recipe.toml").string();
  ModelSpec tiny = small_sit();
  tiny.args["depth"] = "2";
  tiny.args["hidden_size"] = "48";
  const auto network = create_velocity_model(tiny, 1);
  save_velocity_model(model, *network, network->parameters());
  write_file_atomic(recipe, cat("[model]\nfile = \"", model, "\"\n\n[[reward]]\nname = \"ink\"\n"));
  nlohmann::ordered_json out{{"bench", "startup"}, {"repeats", repeats}};
  const std::vector<std::pair<std::string, std::vector<std::string>>> commands{
      {"help", {"--help"}},
      {"list", {"list", "rewards"}},
      {"config", {"config", "show", recipe}},
      {"first_image",
       {"sample", "--model", model, "--n", "1", "--steps", "10", "--out",
        (folder.path() / "samples").string()}}};
  for (const auto& [name, arguments] : commands) {
    std::vector<double> seconds;
    for (std::int64_t repeat = 0; repeat < repeats; ++repeat) {
      std::filesystem::remove_all(folder.path() / "samples");
      seconds.push_back(seconds_of(arguments));
    }
    std::sort(seconds.begin(), seconds.end());
    out[name + "_seconds_min"] = seconds.front();
    out[name + "_seconds_median"] = seconds[seconds.size() / 2];
  }
  return out;
}

}  // namespace tiltflow
