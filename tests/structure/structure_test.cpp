// The house rules that a machine can check: includes point only downwards, headers stay light.
#include <fstream>
#include <map>
#include <set>

#include "tests/support.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/config/fields.h"

namespace tiltflow {

// Mirrors the table in docs/architecture.md.
const std::map<std::string, std::set<std::string>> kMayInclude{
    {"base", {}},
    {"config", {"base"}},
    {"tensor", {"base"}},
    {"io", {"tensor", "base"}},
    {"nn", {"tensor", "base"}},
    {"flow", {"tensor", "base"}},
    {"models", {"nn", "flow", "tensor", "io", "config", "base"}},
    {"sampler", {"flow", "tensor", "config", "base"}},
    {"policy", {"models", "sampler", "nn", "flow", "tensor", "io", "config", "base"}},
    {"reward", {"models", "nn", "flow", "io", "tensor", "config", "base"}},
    {"noise", {"reward", "models", "sampler", "nn", "flow", "tensor", "io", "config", "base"}},
    {"finetune", {"reward", "policy", "sampler", "flow", "nn", "io", "tensor", "config", "base"}},
    {"train",
     {"finetune", "noise", "reward", "policy", "models", "sampler", "nn", "flow", "io", "tensor",
      "config", "base"}},
    {"eval",
     {"train", "noise", "finetune", "reward", "policy", "models", "sampler", "nn", "flow", "io",
      "tensor", "config", "base"}},
};

TEST(structure_includes, ArrowsPointDownwards) {
  int seen = 0;
  for (const auto& entry :
       std::filesystem::recursive_directory_iterator(test::source_dir() / "src/tiltflow")) {
    if (!entry.is_regular_file()) continue;
    const std::string folder =
        std::filesystem::relative(entry.path(), test::source_dir() / "src/tiltflow")
            .begin()
            ->string();
    ASSERT_TRUE(kMayInclude.count(folder)) << folder << " is not in the table";
    std::ifstream file(entry.path());
    std::string line;
    const bool header = entry.path().extension() == ".h";
    while (std::getline(file, line)) {
      if (header && entry.path().filename() != "aten.h") {
        EXPECT_EQ(line.find("#include <torch/"), std::string::npos) << entry.path();
        EXPECT_EQ(line.find("#include <ATen/ATen.h>"), std::string::npos) << entry.path();
        EXPECT_EQ(line.find("tiltflow/tensor/aten.h"), std::string::npos) << entry.path();
      }
      if (!starts_with(line, "#include \"tiltflow/")) continue;
      const std::string target = split(line.substr(19), '/')[0];
      EXPECT_TRUE(target == folder || kMayInclude.at(folder).count(target))
          << entry.path() << " includes " << target;
      ++seen;
    }
  }
  EXPECT_GT(seen, 100);
}

TEST(structure_size, FilesStayReadable) {
  for (const char* root : {"src", "apps"}) {
    for (const auto& entry :
         std::filesystem::recursive_directory_iterator(test::source_dir() / root)) {
      if (!entry.is_regular_file()) continue;
      std::ifstream file(entry.path());
      const auto lines = std::count(std::istreambuf_iterator<char>(file), {}, '\n');
      EXPECT_LE(lines, 400) << entry.path();
    }
  }
}

namespace {

struct Mutant {
  std::string name, file, old, changed, tests;
};
struct Mutants {
  std::vector<Mutant> mutant;
};
void bind(Fields& f, Mutant& m) {
  f.value("name", m.name, "");
  f.value("file", m.file, "");
  f.value("old", m.old, "");
  f.value("new", m.changed, "");
  f.value("tests", m.tests, "");
}
void bind(Fields& f, Mutants& m) { f.list("mutant", m.mutant); }

std::size_t occurrences(const std::string& text, const std::string& part) {
  std::size_t count = 0;
  for (std::size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1))
    ++count;
  return count;
}

}  // namespace

// The faults of scripts/mutants stay applicable: whoever changes such a line changes the list with
// it.
TEST(structure_mutants, EveryFaultAppliesToTheSources) {
  const auto list = load_config<Mutants>(test::source_dir() / "scripts/mutants.toml", {}).mutant;
  EXPECT_GE(list.size(), 40u);
  std::set<std::string> names, folders;
  for (const Mutant& m : list) {
    EXPECT_TRUE(names.insert(m.name).second) << m.name << " is there twice";
    EXPECT_NE(m.old, m.changed) << m.name;
    EXPECT_FALSE(m.tests.empty()) << m.name;
    const std::size_t count = occurrences(read_file(test::source_dir() / m.file), m.old);
    EXPECT_EQ(count, 1u) << "scripts/mutants.toml, " << m.name << ": `" << m.old << "` occurs "
                         << count << " times in " << m.file
                         << "; adapt `old` and `new`, or choose another fault";
    const std::vector<std::string> parts = split(m.file, '/');
    folders.insert(parts[parts[0] == "src" ? 2 : 0]);
  }
  for (const auto& [folder, arrows] : kMayInclude)
    EXPECT_TRUE(folders.count(folder)) << "no fault in src/tiltflow/" << folder;
}

}  // namespace tiltflow
