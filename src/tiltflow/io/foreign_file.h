// What a file is when it is not a file of tensors: the pointer of a version control system, a web
// page, an archive, a picture, another framework's model. Recognised by content, so that the
// message can say what to do about it.
#pragma once

#include <string>
#include <string_view>

#include "tiltflow/io/zip_archive.h"

namespace tiltflow {

struct ForeignFile {
  std::string what;  // completes "FILE is ..."; empty: nothing speaks against the file
  std::string hint;  // what to do next
};

constexpr std::size_t kForeignHead = 1024;  // bytes that foreign_file looks at

// The length of a header, then the header.
bool looks_like_safetensors(std::string_view head);
// `head`: the first kForeignHead bytes, or the whole of a shorter file.
ForeignFile foreign_file(std::string_view head);
// Throws kBadFile when `head` belongs to a foreign file; `where` is its path.
void refuse_foreign_file(std::string_view head, const std::string& where);

// The same for zip archives that hold something else than a checkpoint: TorchScript, exported
// programs, Keras, NumPy.
void refuse_foreign_archive(const ZipArchive& archive, const std::string& where);

}  // namespace tiltflow
