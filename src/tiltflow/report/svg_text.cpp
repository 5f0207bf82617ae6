#include "tiltflow/report/svg_text.h"

#include "tiltflow/base/strings.h"

namespace tiltflow {
namespace {

bool continues(unsigned char c) { return (c & 0xc0) == 0x80; }

// Length of the well-formed UTF-8 sequence at `i` that XML allows, or 0.
std::size_t sequence_at(std::string_view text, std::size_t i) {
  const auto byte = [&](std::size_t k) { return static_cast<unsigned char>(text[i + k]); };
  const unsigned char lead = byte(0);
  if (lead < 0x80) return 1;
  const std::size_t length = lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : 2;
  if (lead < 0xc2 || lead > 0xf4 || i + length > text.size()) return 0;
  for (std::size_t k = 1; k < length; ++k) {
    if (!continues(byte(k))) return 0;
  }
  if (lead == 0xe0 && byte(1) < 0xa0) return 0;                     // overlong
  if (lead == 0xed && byte(1) > 0x9f) return 0;                     // surrogates
  if (lead == 0xef && byte(1) == 0xbf && byte(2) > 0xbd) return 0;  // U+FFFE, U+FFFF
  if (lead == 0xf0 && byte(1) < 0x90) return 0;                     // overlong
  if (lead == 0xf4 && byte(1) > 0x8f) return 0;                     // beyond U+10FFFF
  return length;
}

// Characters of well-formed text, one string each.
std::vector<std::string_view> characters(std::string_view text) {
  std::vector<std::string_view> out;
  for (std::size_t i = 0; i < text.size();) {
    std::size_t end = i + 1;
    while (end < text.size() && continues(static_cast<unsigned char>(text[end]))) ++end;
    out.push_back(text.substr(i, end - i));
    i = end;
  }
  return out;
}

double em(std::string_view character) {
  static const std::string_view narrow = " .,:;|!'ijlt()[]/-fr1";
  if (character.size() >= 3 && static_cast<unsigned char>(character[0]) >= 0xe3) {
    return 1.05;  // East Asian, emoji
  }
  if (character == "m" || character == "w" || character == "M" || character == "W" ||
      character == "%") {
    return 0.9;
  }
  return character.size() == 1 && narrow.find(character[0]) != std::string_view::npos ? 0.38 : 0.62;
}

// Appends a word to the lines, cut into pieces that fit where it does not.
void add_word(std::vector<std::string>& lines, const std::string& word, double width, double size) {
  if (text_width(word, size) <= width) {
    lines.push_back(word);
    return;
  }
  lines.emplace_back();
  for (const std::string_view c : characters(word)) {
    if (!lines.back().empty() && text_width(lines.back() + std::string(c), size) > width) {
      lines.emplace_back();
    }
    lines.back() += c;
  }
}

}  // namespace

std::string xml_text(std::string_view text) {
  std::string clean;
  for (std::size_t i = 0; i < text.size();) {
    const std::size_t length = sequence_at(text, i);
    if (length == 0) {
      clean += "\xef\xbf\xbd";
      ++i;
      continue;
    }
    const auto c = static_cast<unsigned char>(text[i]);
    if (length == 1 && (c < 0x20 || c == 0x7f)) {
      clean += ' ';
    } else {
      clean += text.substr(i, length);
    }
    i += length;
  }
  return html_escape(clean);
}

double text_width(std::string_view text, double size) {
  double out = 0;
  for (const std::string_view c : characters(text)) out += em(c);
  return out * size;
}

std::vector<std::string> wrapped(std::string_view text, double width, double size) {
  std::vector<std::string> lines;
  for (const std::string& word : split(text, ' ')) {
    if (word.empty()) continue;
    if (!lines.empty() && text_width(cat(lines.back(), " ", word), size) <= width) {
      lines.back() += " " + word;
    } else {
      add_word(lines, word, width, size);
    }
  }
  return lines;
}

}  // namespace tiltflow
