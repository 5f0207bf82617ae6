#include "tiltflow/tensor/random.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>

#include "tiltflow/base/error.h"
#include "tiltflow/tensor/aten.h"

namespace tiltflow {
namespace {

using Block = std::array<std::uint32_t, 4>;

// Ten rounds of Philox4x32; multipliers and Weyl constants from the paper's reference values.
inline Block philox(Block counter, std::uint64_t seed) {
  std::uint32_t k0 = static_cast<std::uint32_t>(seed);
  std::uint32_t k1 = static_cast<std::uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t a = std::uint64_t{0xD2511F53u} * counter[0];
    const std::uint64_t b = std::uint64_t{0xCD9E8D57u} * counter[2];
    counter = {static_cast<std::uint32_t>(b >> 32) ^ counter[1] ^ k0, static_cast<std::uint32_t>(b),
               static_cast<std::uint32_t>(a >> 32) ^ counter[3] ^ k1,
               static_cast<std::uint32_t>(a)};
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return counter;
}

// A stream of 32-bit words for one (purpose, step, substep, sample).
class Words {
 public:
  Words(std::uint64_t seed, Purpose purpose, std::uint32_t step, std::uint32_t substep,
        std::int64_t sample)
      : seed_(seed),
        counter_{0, static_cast<std::uint32_t>(sample), step,
                 (static_cast<std::uint32_t>(purpose) << 24) | (substep & 0xffffffu)} {}
  Block next_block() {
    const Block out = philox(counter_, seed_);
    ++counter_[0];
    return out;
  }
  std::uint32_t next() {
    if (used_ == 4) {
      block_ = next_block();
      used_ = 0;
    }
    return block_[used_++];
  }
  // Unbiased integer below `bound` by rejection.
  std::uint64_t below(std::uint64_t bound) {
    const std::uint64_t limit = ~std::uint64_t{0} - ~std::uint64_t{0} % bound;
    while (true) {
      const std::uint64_t value = (std::uint64_t{next()} << 32) | next();
      if (value < limit) return value % bound;
    }
  }

 private:
  std::uint64_t seed_;
  Block counter_;
  Block block_{};
  int used_ = 4;
};

std::vector<std::int64_t> batch_shape(std::int64_t n, at::IntArrayRef shape) {
  std::vector<std::int64_t> full{n};
  full.insert(full.end(), shape.begin(), shape.end());
  return full;
}

void check_sample_range(std::int64_t first, std::int64_t n) {
  if (first < 0 || n < 0 || first + n > (std::int64_t{1} << 32)) {
    fail(ErrorKind::kFailure, "sample index outside [0, 2^32)");
  }
}

// (0, 1]: safe inside a logarithm.
inline float open_unit(std::uint32_t word) {
  return (static_cast<float>(word >> 8) + 1.0f) * 0x1p-24f;
}

}  // namespace

at::Tensor RandomStreams::normal(Purpose purpose, std::uint32_t step, std::uint32_t substep,
                                 std::int64_t first, std::int64_t n, at::IntArrayRef shape,
                                 at::ScalarType dtype) const {
  check_sample_range(first, n);
  at::Tensor out = at::empty(batch_shape(n, shape), at::kFloat);
  const std::int64_t row = n ? out.numel() / n : 0;
  float* data = out.data_ptr<float>();
  for (std::int64_t i = 0; i < n; ++i, data += row) {
    Words words(seed_, purpose, step, substep, first + i);
    for (std::int64_t j = 0; j < row; j += 4) {
      const Block block = words.next_block();
      float values[4];
      for (int pair = 0; pair < 2; ++pair) {
        const float radius = std::sqrt(-2.0f * std::log(open_unit(block[2 * pair])));
        const float angle =
            static_cast<float>(block[2 * pair + 1] >> 8) * (0x1p-24f * 6.283185307179586f);
        values[2 * pair] = radius * std::cos(angle);
        values[2 * pair + 1] = radius * std::sin(angle);
      }
      for (std::int64_t l = 0; l < std::min<std::int64_t>(4, row - j); ++l) data[j + l] = values[l];
    }
  }
  return out.to(dtype);
}

at::Tensor RandomStreams::uniform(Purpose purpose, std::uint32_t step, std::int64_t first,
                                  std::int64_t n, at::IntArrayRef shape,
                                  at::ScalarType dtype) const {
  check_sample_range(first, n);
  at::Tensor out = at::empty(batch_shape(n, shape), at::kDouble);
  const std::int64_t row = n ? out.numel() / n : 0;
  double* data = out.data_ptr<double>();
  for (std::int64_t i = 0; i < n; ++i, data += row) {
    Words words(seed_, purpose, step, 0, first + i);
    for (std::int64_t j = 0; j < row; ++j) {
      data[j] = static_cast<double>(words.next() >> 8) * 0x1p-24;
    }
  }
  return out.to(dtype);
}

at::Tensor RandomStreams::integers(Purpose purpose, std::uint32_t step, std::int64_t first,
                                   std::int64_t n, std::int64_t bound) const {
  check_sample_range(first, n);
  if (bound <= 0) fail(ErrorKind::kFailure, "integer range is empty");
  at::Tensor out = at::empty({n}, at::kLong);
  for (std::int64_t i = 0; i < n; ++i) {
    out.data_ptr<std::int64_t>()[i] = static_cast<std::int64_t>(
        Words(seed_, purpose, step, 1, first + i).below(static_cast<std::uint64_t>(bound)));
  }
  return out;
}

std::vector<std::int64_t> RandomStreams::permutation(Purpose purpose, std::uint32_t step,
                                                     std::int64_t n) const {
  std::vector<std::int64_t> order(static_cast<std::size_t>(n));
  std::iota(order.begin(), order.end(), 0);
  Words words(seed_, purpose, step, 2, 0);
  for (std::int64_t i = n - 1; i > 0; --i) {
    std::swap(order[static_cast<std::size_t>(i)],
              order[words.below(static_cast<std::uint64_t>(i + 1))]);
  }
  return order;
}

std::vector<std::int64_t> RandomStreams::choose(Purpose purpose, std::uint32_t step,
                                                std::int64_t low, std::int64_t high,
                                                std::int64_t count) const {
  std::vector<std::int64_t> picked =
      permutation(purpose, step, std::max<std::int64_t>(0, high - low));
  picked.resize(static_cast<std::size_t>(
      std::min<std::int64_t>(count, static_cast<std::int64_t>(picked.size()))));
  for (std::int64_t& value : picked) value += low;
  std::sort(picked.begin(), picked.end());
  return picked;
}

}  // namespace tiltflow
