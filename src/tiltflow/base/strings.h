// Small text helpers: concatenation, number formatting, edit distance, escaping.
#pragma once

#include <cstdint>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

namespace tiltflow {

// cat("tensor ", name, ": ", n, " rows") -> one string.
template <class... Parts>
std::string cat(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

std::string fixed(double value, int digits);             // 3.142
std::string compact(double value, int significant = 4);  // 3.142, 1.2e-05, 12000
std::string pad_left(std::string text, std::size_t width);
std::string pad_right(std::string text, std::size_t width);
std::string format_bytes(double bytes);       // "1.4 GB" (powers of 1000)
std::string format_duration(double seconds);  // "1h02m", "3m05s", "4.2s"
std::string join(const std::vector<std::string>& parts, std::string_view separator);
std::vector<std::string> split(std::string_view text, char separator);
std::string html_escape(std::string_view text);
bool starts_with(std::string_view text, std::string_view prefix);
bool ends_with(std::string_view text, std::string_view suffix);

// Shell-like match with '*' (any run of characters) and '?' (one character).
bool matches_pattern(std::string_view text, std::string_view pattern);

// The candidate closest to `word` in edit distance if close enough to be a typing slip, else "".
std::string closest_match(std::string_view word, const std::vector<std::string>& candidates);
// " (did you mean 'x'?)" or "".
std::string did_you_mean(std::string_view word, const std::vector<std::string>& candidates);

}  // namespace tiltflow
