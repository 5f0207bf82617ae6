// Which pictures belong to a split of a picture folder. One split is never taken for another.
#pragma once

#include <filesystem>
#include <string>

namespace tiltflow {

struct SplitFolder {
  std::filesystem::path folder;  // whose sub-folders are the classes
  bool split = false;            // false: the folder is not divided, and holds all pictures
};
// `split`: "train" (train, training) or "test" (test, val, valid, validation; the first there is).
// A folder with none of these sub-folders is not divided. Throws kBadFile when it has others of
// them and not this one.
SplitFolder split_folder(const std::filesystem::path& folder, const std::string& split);

}  // namespace tiltflow
