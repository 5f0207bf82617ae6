// A device of libtorch that is none: its memory is the CPU's and its operators are the CPU's, but
// its tensors cannot be read as CPU tensors and an operator that mixes both throws, as on a GPU.
// What runs on it, with the same numbers, keeps devices apart.
#pragma once

#include <cstdint>
#include <string>

namespace tiltflow::test {

std::string fake_device();         // its name, for compute.device
std::int64_t fake_device_calls();  // operators it has run

}  // namespace tiltflow::test
