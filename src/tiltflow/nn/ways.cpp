#include "tiltflow/nn/ways.h"

#include <algorithm>

#include "tiltflow/base/error.h"
#include "tiltflow/base/strings.h"

namespace tiltflow {
namespace {

// A range of sizes and the size that stands for it.
struct SizeClass {
  std::int64_t below;  // the first size beyond it; 0: none
  std::int64_t typical;
  const char* name;
};
constexpr std::array<SizeClass, 3> kWidths{
    {{64, 48, "width below 64"}, {256, 96, "width 64 to 255"}, {0, 384, "width 256 or more"}}};
constexpr std::array<SizeClass, 3> kRows{
    {{32, 16, "below 32 rows"}, {128, 64, "32 to 127 rows"}, {0, 256, "128 rows or more"}}};
constexpr std::array<SizeClass, 4> kTokens{{{33, 16, "up to 32 tokens"},
                                            {129, 64, "33 to 128 tokens"},
                                            {513, 256, "129 to 512 tokens"},
                                            {0, 768, "more tokens"}}};
constexpr std::array<SizeClass, 2> kHeads{{{49, 32, "heads up to 48"}, {0, 64, "wider heads"}}};
constexpr std::array<const char*, 3> kUses{"frozen", "trained", "weight gradient"};
constexpr std::array<const char*, 2> kPasses{"GELU", "normalisation"};
constexpr std::int64_t kLargestMath = 512;  // tokens: the whole matrix of scores is kept

template <std::size_t N>
std::size_t class_of(const std::array<SizeClass, N>& classes, std::int64_t size) {
  std::size_t i = 0;
  while (classes[i].below != 0 && size >= classes[i].below) ++i;
  return i;
}

std::uint8_t option(auto way) { return static_cast<std::uint8_t>(way); }

// Products, in the order that Ways::product counts on: type, use, width, rows.
void add_products(std::vector<WaySlot>& slots, bool half) {
  for (std::size_t use = 0; use < kUses.size(); ++use) {
    for (std::size_t width = 0; width < kWidths.size(); ++width) {
      for (std::size_t rows = 0; rows < kRows.size(); ++rows) {
        WaySlot slot;
        slot.half = half;
        slot.use = static_cast<ProductUse>(use);
        slot.width = kWidths[width].typical;
        slot.rows = kRows[rows].typical;
        slot.name = cat(half ? "bf16" : "fp32", " product, ", kUses[use], ", ", kWidths[width].name,
                        ", ", kRows[rows].name);
        const bool frozen = slot.use == ProductUse::kFrozen;
        if (frozen) slot.options.push_back(option(ProductWay::kPacked));
        if (!half) slot.options.push_back(option(ProductWay::kOneDnn));
        slot.options.push_back(option(ProductWay::kLibrary));  // in bf16 that is oneDNN as well
        const bool large = width + 1 == kWidths.size() || rows + 1 == kRows.size();
        slot.rule = option(frozen && (half || large) ? ProductWay::kPacked : ProductWay::kLibrary);
        slots.push_back(slot);
      }
    }
  }
}

void add_attention(std::vector<WaySlot>& slots, bool half) {
  for (const SizeClass& tokens : kTokens) {
    for (const SizeClass& head : kHeads) {
      WaySlot slot;
      slot.kind = WaySlot::Kind::kAttention;
      slot.half = half;
      slot.width = head.typical;
      slot.rows = tokens.typical;
      slot.name = cat(half ? "bf16" : "fp32", " attention, ", tokens.name, ", ", head.name);
      slot.options = {option(AttentionWay::kOwn), option(AttentionWay::kFlash)};
      if (!half && tokens.typical <= kLargestMath) {
        slot.options.push_back(option(AttentionWay::kMath));
      }
      slot.rule = option(AttentionWay::kOwn);
      slots.push_back(slot);
    }
  }
}

void add_passes(std::vector<WaySlot>& slots, bool half) {
  for (std::size_t pass = 0; pass < kPasses.size(); ++pass) {
    WaySlot slot;
    slot.kind = WaySlot::Kind::kPass;
    slot.half = half;
    slot.pass = static_cast<Pass>(pass);
    slot.width = 96;
    slot.rows = 256;
    slot.name = cat(half ? "bf16" : "fp32", " ", kPasses[pass]);
    slot.options = {option(PassWay::kOwn), option(PassWay::kLibrary)};
    slot.rule = option(PassWay::kOwn);
    slots.push_back(slot);
  }
}

constexpr std::size_t kProductSlots = kUses.size() * kWidths.size() * kRows.size();
constexpr std::size_t kAttentionSlots = kTokens.size() * kHeads.size();
constexpr std::size_t kSlotsOfAType = kProductSlots + kAttentionSlots + kPasses.size();

std::size_t first_slot(bool half) { return half ? kSlotsOfAType : 0; }

Ways& current() {
  static Ways ways;
  return ways;
}

}  // namespace

const std::vector<WaySlot>& way_slots() {
  static const std::vector<WaySlot> all = [] {
    std::vector<WaySlot> slots;
    for (const bool half : {false, true}) {
      add_products(slots, half);
      add_attention(slots, half);
      add_passes(slots, half);
    }
    return slots;
  }();
  return all;
}

std::string option_name(const WaySlot& slot, std::uint8_t option) {
  constexpr std::array<const char*, 3> kProducts{"library", "onednn", "packed"};
  constexpr std::array<const char*, 3> kAttention{"own", "flash", "math"};
  if (slot.kind == WaySlot::Kind::kProduct) return kProducts.at(option);
  return slot.kind == WaySlot::Kind::kAttention ? kAttention.at(option)
                                                : std::array{"own", "library"}.at(option);
}

Ways::Ways() : measured_(way_slots().size()) {
  for (const WaySlot& slot : way_slots()) chosen_.push_back(slot.rule);
}

ProductWay Ways::product(bool half, ProductUse use, std::int64_t rows, std::int64_t in,
                         std::int64_t out) const {
  const std::size_t width = class_of(kWidths, std::min(in, out));
  const std::size_t at = (static_cast<std::size_t>(use) * kWidths.size() + width) * kRows.size() +
                         class_of(kRows, rows);
  return static_cast<ProductWay>(chosen_[first_slot(half) + at]);
}

AttentionWay Ways::attention(bool half, std::int64_t tokens, std::int64_t head) const {
  const std::size_t at = class_of(kTokens, tokens) * kHeads.size() + class_of(kHeads, head);
  return static_cast<AttentionWay>(chosen_[first_slot(half) + kProductSlots + at]);
}

PassWay Ways::pass(bool half, Pass pass) const {
  const std::size_t at = kProductSlots + kAttentionSlots + static_cast<std::size_t>(pass);
  return static_cast<PassWay>(chosen_[first_slot(half) + at]);
}

void Ways::choose(std::size_t slot, std::uint8_t option) {
  const std::vector<std::uint8_t>& options = way_slots().at(slot).options;
  if (std::find(options.begin(), options.end(), option) == options.end()) {
    fail(ErrorKind::kFailure,
         cat(way_slots()[slot].name, ": no option ", static_cast<int>(option)));
  }
  chosen_[slot] = option;
  measured_[slot] = true;
}

bool Ways::complete(bool half) const {
  const auto begin = measured_.begin() + static_cast<std::ptrdiff_t>(first_slot(half));
  return std::find(begin, begin + static_cast<std::ptrdiff_t>(kSlotsOfAType), false) ==
         begin + static_cast<std::ptrdiff_t>(kSlotsOfAType);
}

const Ways& ways() { return current(); }
void set_ways(Ways ways) { current() = std::move(ways); }

}  // namespace tiltflow
