// The pictures of a run as its report shows them.
#pragma once

#include <filesystem>
#include <string>

namespace tiltflow {

// Pictures of samples/ with their captions, as HTML; "" when there are none. Of grids of samples
// the first and the last, of other kinds the last. tuned: the run tunes a base model, whose samples
// are the first grid. Writes before-after.png beside them when there are two grids of one size.
std::string pictures_html(const std::filesystem::path& run, bool tuned);

}  // namespace tiltflow
