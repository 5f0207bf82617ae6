#include "tiltflow/io/split_folder.h"

#include <vector>

#include "tiltflow/base/error.h"
#include "tiltflow/base/strings.h"

namespace tiltflow {
namespace {

namespace fs = std::filesystem;

const std::vector<std::string> kTrain{"train", "training"};
const std::vector<std::string> kTest{"test", "val", "valid", "validation"};

std::vector<std::string> those_there(const fs::path& folder,
                                     const std::vector<std::string>& names) {
  std::vector<std::string> out;
  for (const std::string& name : names) {
    if (fs::is_directory(folder / name)) out.push_back(name);
  }
  return out;
}

}  // namespace

SplitFolder split_folder(const fs::path& folder, const std::string& split) {
  const std::vector<std::string> train = those_there(folder, kTrain);
  const std::vector<std::string> test = those_there(folder, kTest);
  if (train.empty() && test.empty()) return {folder, false};
  const bool wants_train = split == "train";
  const std::vector<std::string>& found = wants_train ? train : test;
  if (!found.empty()) return {folder / found.front(), true};
  fail(ErrorKind::kBadFile,
       cat("no ", split, " pictures in ", folder.string(), ": it is divided into ",
           join(wants_train ? test : train, ", "), " and has no folder ",
           join(wants_train ? kTrain : kTest, ", ")),
       "add that folder, or name the pictures' own folder");
}

}  // namespace tiltflow
