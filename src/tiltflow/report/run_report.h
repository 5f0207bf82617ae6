// The report of a run: one self-contained HTML file made from whatever the run has written so far.
#pragma once

#include <filesystem>

namespace tiltflow {

// Reads config.toml, metrics.jsonl, and where they are there samples/ and check.json of a run
// directory of any kind, and writes report.html atomically: what was run, its result in a sentence,
// warnings, pictures, the tilted-law check, curves of every number that was logged, settings. Two
// or more grids of samples also make before-after.png. Returns the path of report.html. Throws
// kBadFile when the directory is not a run or check.json is broken.
std::filesystem::path write_report(const std::filesystem::path& run);

}  // namespace tiltflow
