// The house rules that a machine can check: includes point only downwards, headers stay light.
#include <algorithm>
#include <cctype>
#include <fstream>
#include <map>
#include <regex>
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
    {"report", {"io", "tensor", "base"}},
    {"eval",
     {"report", "train", "finetune", "reward", "policy", "models", "sampler", "noise", "nn", "flow",
      "io", "tensor", "config", "base"}},
    {"verify",
     {"train", "finetune", "reward", "policy", "models", "sampler", "nn", "flow", "io", "tensor",
      "config", "base"}},
    {"bench",
     {"train", "finetune", "noise", "policy", "models", "sampler", "nn", "flow", "tensor", "config",
      "base"}},
};

namespace {

// The folder of a source; "" for tiltflow.h beside the folders, which may include all of them.
std::string folder_of(const std::filesystem::path& source) {
  const auto inside = std::filesystem::relative(source, test::source_dir() / "src/tiltflow");
  return inside.has_parent_path() ? inside.begin()->string() : "";
}

bool may_include(const std::string& folder, const std::string& target) {
  if (folder.empty()) return kMayInclude.count(target) == 1;
  return target == folder || kMayInclude.at(folder).count(target) == 1;
}

}  // namespace

TEST(structure_includes, ArrowsPointDownwards) {
  int seen = 0;
  for (const auto& entry :
       std::filesystem::recursive_directory_iterator(test::source_dir() / "src/tiltflow")) {
    if (!entry.is_regular_file()) continue;
    const std::string folder = folder_of(entry.path());
    if (folder.empty()) {
      EXPECT_EQ(entry.path().filename(), "tiltflow.h") << "sources belong into a folder";
    } else {
      ASSERT_TRUE(kMayInclude.count(folder)) << folder << " is not in the table";
    }
    std::ifstream file(entry.path());
    std::string line;
    const bool header = entry.path().extension() == ".h";
    while (std::getline(file, line)) {
      if (header && entry.path().filename() != "aten.h") {
        EXPECT_EQ(line.find("#include <torch/"), std::string::npos) << entry.path();
        EXPECT_EQ(line.find("#include <ATen/ATen.h>"), std::string::npos) << entry.path();
        EXPECT_EQ(line.find("#include \"tiltflow/tensor/aten.h\""), std::string::npos)
            << entry.path();
      }
      if (!starts_with(line, "#include \"tiltflow/")) continue;
      const std::string target = split(line.substr(19), '/')[0];
      EXPECT_TRUE(may_include(folder, target)) << entry.path() << " includes " << target;
      ++seen;
    }
  }
  EXPECT_GT(seen, 100);
}

// ctest runs the tests folder by folder, by the beginning of their suites' names.
TEST(structure_tests, EverySuiteBelongsToAFolder) {
  const ::testing::UnitTest& all = *::testing::UnitTest::GetInstance();
  EXPECT_GT(all.total_test_suite_count(), 100);
  for (int i = 0; i < all.total_test_suite_count(); ++i) {
    const std::string suite = all.GetTestSuite(i)->name();
    const std::string folder = suite.substr(0, suite.find('_'));
    EXPECT_TRUE(std::filesystem::is_directory(test::source_dir() / "tests" / folder))
        << suite << " is run by no entry of ctest";
  }
}

namespace {

std::vector<std::filesystem::path> sources(const std::vector<std::string>& roots) {
  std::vector<std::filesystem::path> out;
  for (const std::string& root : roots) {
    for (const auto& entry :
         std::filesystem::recursive_directory_iterator(test::source_dir() / root)) {
      const std::string kind = entry.path().extension().string();
      const bool source = kind == ".cpp" || kind == ".h" || kind == ".cu";
      if (entry.is_regular_file() && source) out.push_back(entry.path());
    }
  }
  return out;
}

constexpr std::int64_t kLongestFile = 500;
constexpr std::int64_t kLongestFunction = 60;  // a screen

std::int64_t lines_of(const std::string& text) {
  return std::count(text.begin(), text.end(), '\n');
}

// The length of the raw string, string, character or comment at `at`; 0 when none begins there.
std::size_t quoted_length(const std::string& text, std::size_t at) {
  const auto until = [&](const std::string& end, std::size_t from) {
    const std::size_t found = text.find(end, from);
    return (found == std::string::npos ? text.size() : found + end.size()) - at;
  };
  if (text.compare(at, 2, "//") == 0) return until("\n", at) - 1;
  if (text.compare(at, 2, "/*") == 0) return until("*/", at + 2);
  if (text.compare(at, 2, "R\"") == 0) {
    const std::size_t open = text.find('(', at);
    return until(")" + text.substr(at + 2, open - at - 2) + "\"", open);
  }
  const bool digits = at > 0 && std::isalnum(static_cast<unsigned char>(text[at - 1]));
  if (text[at] != '"' && (text[at] != '\'' || digits)) return 0;
  std::size_t end = at + 1;
  while (end < text.size() && text[end] != text[at]) end += text[end] == '\\' ? 2 : 1;
  return end + 1 - at;
}

// Code without comments and without what stands in quotes; line breaks stay.
std::string code_of(const std::string& text) {
  std::string out;
  for (std::size_t i = 0; i < text.size();) {
    const std::size_t quoted = quoted_length(text, i);
    if (quoted == 0) {
      out += text[i++];
      continue;
    }
    out += '_';
    out.append(static_cast<std::size_t>(lines_of(text.substr(i, quoted))), '\n');
    i += quoted;
  }
  return out;
}

enum class Block { kScope, kFunction, kOther };

// What a brace opens, from the code between it and the end of the last statement.
Block block_of(const std::string& head, bool in_scopes) {
  static const std::regex scope(R"(\b(namespace|class|struct|enum|union|extern)\b[^()]*$)");
  if (!in_scopes) return Block::kOther;
  if (std::regex_search(head, scope)) return Block::kScope;
  return head.find('(') == std::string::npos ? Block::kOther : Block::kFunction;
}

struct Function {
  std::int64_t line;
  std::int64_t length;
};

// Functions of formatted code, with their first lines; lambdas belong to the function around them.
std::vector<Function> functions_of(const std::string& text) {
  struct Open {
    Block block;
    std::int64_t line;
  };
  const std::string code = code_of(text);
  std::vector<Open> open;
  std::vector<Function> out;
  std::string head;
  std::int64_t line = 1;
  for (const char c : code) {
    if (c == '\n') ++line;
    if (c == '{') {
      const bool scopes = std::all_of(open.begin(), open.end(),
                                      [](const Open& o) { return o.block == Block::kScope; });
      open.push_back({block_of(head, scopes), line});
    }
    if (c == '}' && !open.empty()) {
      const Open ended = open.back();
      open.pop_back();
      if (ended.block == Block::kFunction) out.push_back({ended.line, line - ended.line + 1});
    }
    head = c == ';' || c == '{' || c == '}' ? "" : head + c;
  }
  return out;
}

}  // namespace

TEST(structure_size, FunctionsAreFound) {
  const std::string text =
      "namespace a {\nstruct B {\n  int f() const {\n    return 1;\n  }\n  int n{1};\n};\n"
      "int g(int x) {\n  const char c = '{';\n  if (x) {\n    return 1;  // }\n  }\n"
      "  return [] { return R\"(}})\"[0]; }();\n}\n}\n";
  const std::vector<Function> found = functions_of(text);
  ASSERT_EQ(found.size(), 2u);
  EXPECT_EQ(found[0].line, 3);
  EXPECT_EQ(found[0].length, 3);
  EXPECT_EQ(found[1].line, 8);
  EXPECT_EQ(found[1].length, 7);
}

// The width of lines is the formatter's.
TEST(structure_size, FilesAndFunctionsFitAReader) {
  std::size_t functions = 0;
  for (const auto& path : sources({"src", "apps", "tests", "examples"})) {
    const std::string text = read_file(path);
    EXPECT_LE(lines_of(text), kLongestFile) << path;
    for (const Function& f : functions_of(text)) {
      EXPECT_LE(f.length, kLongestFunction) << path << ":" << f.line;
      ++functions;
    }
  }
  EXPECT_GT(functions, 3000u);
}

namespace {

// Sources of a folder by their names without ending.
std::set<std::string> stems_below(const std::string& folder) {
  std::set<std::string> out;
  for (const auto& path : sources({folder})) out.insert(path.stem().string());
  return out;
}

// `name` is one of `names`, or one of them with an aspect behind it: parallel, parallel_threads.
bool named_after(const std::string& name, const std::set<std::string>& names) {
  return std::any_of(names.begin(), names.end(),
                     [&](const std::string& n) { return name == n || starts_with(name, n + "_"); });
}

}  // namespace

// tests/io/npz_test.cpp tests src/tiltflow/io/npz; its suite is io_npz.
TEST(structure_tests, FilesAndSuitesAreNamedAfterSources) {
  static const std::regex written(R"(\nTEST(?:_F|_P)?\((\w+), \w+\))");
  for (const auto& [folder, arrows] : kMayInclude) {
    if (!std::filesystem::exists(test::source_dir() / "tests" / folder)) continue;
    const std::set<std::string> stems = stems_below("src/tiltflow/" + folder);
    for (const auto& path : sources({"tests/" + folder})) {
      if (!ends_with(path.stem().string(), "_test")) continue;
      const std::string stem = path.stem().string().substr(0, path.stem().string().size() - 5);
      EXPECT_TRUE(named_after(stem, stems)) << path << " has no source of its name";
      const std::string text = read_file(path);
      for (std::sregex_iterator it(text.begin(), text.end(), written), end; it != end; ++it) {
        EXPECT_TRUE(named_after((*it)[1].str(), {folder + "_" + stem})) << path << ": " << (*it)[1];
      }
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

std::string without_spaces(std::string text) {
  std::erase_if(text, [](unsigned char c) { return std::isspace(c); });
  return text;
}

// How often `part` stands in `text`, whatever the line breaks and spaces.
std::size_t occurrences(const std::string& text, const std::string& part) {
  const std::string where = without_spaces(text);
  const std::string what = without_spaces(part);
  std::size_t count = 0;
  for (std::size_t at = where.find(what); at != std::string::npos; at = where.find(what, at + 1)) {
    ++count;
  }
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
  for (const auto& [folder, arrows] : kMayInclude) {
    const bool measures_time = folder == "bench";  // what no test may judge
    EXPECT_TRUE(measures_time || folders.count(folder)) << "no fault in src/tiltflow/" << folder;
  }
  EXPECT_TRUE(folders.count("apps")) << "no fault in apps";
}

}  // namespace tiltflow
