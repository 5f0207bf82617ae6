// The folder that samples are drawn into: it holds the samples of one request, and one call writes
// to it (or the shards of one).
#pragma once

#include "tiltflow/base/folder_claim.h"
#include "tiltflow/eval/generate.h"

namespace tiltflow {

struct SampleFolder {
  FolderClaim claim;
  bool finished = false;  // all samples are there and packed
};

// Claims OUT for this call and writes OUT/request.json. A folder with samples is refused, naming
// them, unless `resume` or shards continue the same request (files count by content, not by path)
// or `overwrite` removes them. Throws kConfig, kFailure.
SampleFolder open_sample_folder(const GenerateOptions& options);

}  // namespace tiltflow
