// Paths in configurations: relative to the folder of the file that says them.
#pragma once

#include <filesystem>
#include <string>

namespace tiltflow {

// `written` as seen from `base` ("": the working directory), absolute; "~/" is the home folder.
// Links in the path keep their names.
std::string located(const std::string& written, const std::filesystem::path& base);

// What is wrong with a path that is not there when it is seen from `base`, but is when seen from
// the working directory: "" or a sentence.
std::string misread_path(const std::string& written, const std::filesystem::path& base);

}  // namespace tiltflow
