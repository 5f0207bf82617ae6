// How long the program takes to answer: starts itself again, from the file that runs now.
#pragma once

#include <nlohmann/json.hpp>

namespace tiltflow {

// Fastest and median seconds of `--help`, `list rewards`, `config show` and of `sample` to the
// first picture of a tiny model.
nlohmann::ordered_json bench_startup(std::int64_t repeats);

}  // namespace tiltflow
