// The report of a run: one self-contained HTML file with curves, pictures and the tilted-law check.
#pragma once

#include <filesystem>

namespace tiltflow {

// Reads metrics.jsonl, samples/ and check.json (if there) of a run directory and writes report.html atomically. Returns
// its path. Throws kBadFile when the directory is not a run.
std::filesystem::path write_report(const std::filesystem::path& run);

}  // namespace tiltflow
