// Short texts drawn into pictures: digits, letters and a little punctuation, 5 x 7 pixels each.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>

namespace tiltflow {

// White on black, [9 scale, width], as wide as the text needs: nothing is cut off. Unknown
// characters are hollow boxes.
at::Tensor caption(const std::string& text, int scale = 1);

}  // namespace tiltflow
