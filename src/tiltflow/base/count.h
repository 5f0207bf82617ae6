// Numbers as people read them.
#pragma once

#include <cstdint>
#include <string>

namespace tiltflow {

// "1 step", "2 steps", "0 steps"; `plural` for nouns that do not just take an s.
std::string counted(std::int64_t count, const std::string& singular,
                    const std::string& plural = "");
// The shortest decimal text that reads back as the same double: 0.1, 1e-05, 3.
std::string shortest(double value);

}  // namespace tiltflow
