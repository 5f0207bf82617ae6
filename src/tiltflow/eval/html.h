// Self-contained HTML pages: one style, no scripts, no files beside.
#pragma once

#include <string>

namespace tiltflow {

// `body` is HTML; `title` is text.
std::string html_page(const std::string& title, const std::string& body);

}  // namespace tiltflow
