// Paths in configurations, and differences between two of them.
#include "tiltflow/config/paths.h"
#include "tests/support.h"
#include "tiltflow/config/fields.h"

namespace tiltflow {
namespace {

namespace fs = std::filesystem;

using test::expect_error;

struct Reads {
  std::string file;
  std::string network = "pixels";
  std::vector<std::string> files;
};

void bind(Fields& f, Reads& c) {
  f.path("file", c.file, PathKind::kAll, "a file");
  f.path("network", c.network, PathKind::kWeights, "a file or a word", {"pixels"});
  f.path("files", c.files, PathKind::kAll, "several");
}

class WorkingDirectory {
 public:
  explicit WorkingDirectory(const fs::path& folder) { fs::current_path(folder); }
  ~WorkingDirectory() { fs::current_path(before_); }

 private:
  fs::path before_ = fs::current_path();
};

}  // namespace

TEST(config_paths, OfAFileAreRelativeToItThoseOfTheCommandLineToTheWorkingDirectory) {
  const test::TempDir dir;
  const fs::path root = fs::canonical(dir.path());
  fs::create_directories(root / "recipes");
  fs::create_directories(root / "here");
  write_file_atomic(root / "recipes/c.toml", "file = \"../assets/m\"\nfiles = [\"a\", \"/b/c\"]\n");
  const WorkingDirectory at(root / "here");
  ResolvedConfig resolved;
  Reads read = load_config<Reads>("../recipes/c.toml", {}, &resolved);
  EXPECT_EQ(read.file, (root / "assets/m").string());
  EXPECT_EQ(read.files, (std::vector<std::string>{(root / "recipes/a").string(), "/b/c"}));
  EXPECT_EQ(read.network, "pixels");
  ASSERT_EQ(resolved.inputs.size(), 3u);
  EXPECT_EQ(resolved.inputs[2].name, "files[1]");

  read = load_config<Reads>("../recipes/c.toml", {"file=m", "network=n/"});
  EXPECT_EQ(read.file, (root / "here/m").string());
  EXPECT_EQ(read.network, (root / "here/n").string());
  read = load_config<Reads>("../recipes/c.toml",
                            overrides_from("a recipe", {"file=m"}, root / "recipes"));
  EXPECT_EQ(read.file, (root / "recipes/m").string());

  write_file_atomic(root / "stored.toml", resolved.toml);  // reads the same from anywhere
  EXPECT_EQ(load_config<Reads>(root / "stored.toml", {}).file, (root / "assets/m").string());
}

TEST(config_paths, TheOldReadingIsTold) {
  const test::TempDir dir;
  fs::create_directories(dir / "recipes");
  fs::create_directories(dir / "assets");
  write_file_atomic(dir / "assets/m", "");
  write_file_atomic(dir / "recipes/c.toml", "file = \"assets/m\"\n");
  const WorkingDirectory at(dir.path());
  expect_error(ErrorKind::kConfig,
               "c.toml:1: file = \"assets/m\" is relative to the folder of the configuration",
               [&] { load_config<Reads>("recipes/c.toml", {}); });
  expect_error(ErrorKind::kConfig, "write \"../assets/m\"",
               [&] { load_config<Reads>("recipes/c.toml", {}); });
}

TEST(config_paths, LinksAndHome) {
  const test::TempDir dir;
  const fs::path root = fs::canonical(dir.path());
  fs::create_directories(root / "deep/er");
  write_file_atomic(root / "deep/m", "");
  fs::create_directory_symlink(root / "deep/er", root / "link");
  EXPECT_EQ(fs::canonical(located("link/../m", root)), root / "deep/m")
      << "the system's reading, not that of the text";
  EXPECT_EQ(located("~/m", root), (fs::path(std::getenv("HOME")) / "m").string());
  EXPECT_EQ(located("./x/../y", root), (root / "y").string());
}

}  // namespace tiltflow
