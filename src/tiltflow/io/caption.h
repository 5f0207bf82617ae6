// Short texts drawn into pictures: digits, letters and a little punctuation, 5 x 7 pixels each.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>

namespace tiltflow {

// White on black, [9, width]; what does not fit is cut off, unknown characters stay blank.
at::Tensor caption(const std::string& text, std::int64_t width);

}  // namespace tiltflow
