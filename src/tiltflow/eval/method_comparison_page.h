// The page of a comparison: tables, trade-offs, time to reward, samples from the same noise.
#pragma once

#include <filesystem>

#include "tiltflow/eval/method_comparison.h"

namespace tiltflow {

// OUT/compare.html (nothing beside it) and OUT/compare.md (the tables).
void write_comparison_page(const Comparison& comparison, const std::filesystem::path& out);

}  // namespace tiltflow
