// Text in plots: its estimated width, lines that fit, and escaping that keeps files well-formed.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace tiltflow {

// For element content and double-quoted attributes. Control characters become spaces and bytes that
// are not UTF-8 become U+FFFD, because either would make the whole file unreadable.
std::string xml_text(std::string_view text);

// Width in pixels at a font size, rounded up: nine tenths of the em for wide characters, six for
// others.
double text_width(std::string_view text, double size);

// Lines of at most `width` pixels, broken at spaces, inside words only where a word alone is too
// long.
std::vector<std::string> wrapped(std::string_view text, double width, double size);

}  // namespace tiltflow
