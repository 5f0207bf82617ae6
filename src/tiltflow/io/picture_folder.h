// Which files of a folder are pictures of which class: torchvision's ImageFolder, without what
// operating systems and editors leave behind. Nothing is opened.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace tiltflow {

struct PictureList {
  std::vector<std::filesystem::path> files;
  std::vector<std::int64_t> labels;
  std::vector<std::string> class_names;
  std::vector<std::string> broken;  // "FILE: why": links to nothing, pipes and other entries that
                                    // no picture can be read from
  std::vector<std::string> notes;   // what was left aside, a sentence each
};

// Every sub-folder of `folder` is a class, in the order of their names' bytes (Python's `sorted`).
// Its pictures are those of itself and of all folders below, links followed: .png, .jpg, .jpeg,
// .webp and .bmp in upper or lower case.
//
// Hidden folders and files, __MACOSX and the like are no classes and no pictures. A class without
// pictures is an error, as in ImageFolder: it would shift no label, but train none. Pictures of
// other formats are counted in the notes. Throws kBadFile.
PictureList list_picture_folder(const std::filesystem::path& folder);

}  // namespace tiltflow
