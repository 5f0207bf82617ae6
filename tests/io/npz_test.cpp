#include <zlib.h>

#include "tests/support.h"
#include "tiltflow/base/file.h"
#include "tiltflow/io/npz.h"

namespace tiltflow {

// numpy.savez_compressed: deflated, one array in Fortran order.
TEST(io_npz, ReadsWhatNumPyWrites) {
  const ParameterSet t = read_npz(test::source_dir() / "tests/golden/numpy/statistics.npz");
  EXPECT_TRUE(at::equal(t.at("mu"), at::arange(3, at::kDouble)));
  EXPECT_TRUE(at::equal(t.at("sigma"),
                        at::eye(3, at::kDouble) * 2 + at::arange(9, at::kDouble).view({3, 3}).t()));
  const test::TempDir dir;
  write_npz(dir / "x.npz", t);
  EXPECT_TRUE(at::equal(read_npz(dir / "x.npz").at("sigma"), t.at("sigma")));
}

// tests/golden/numpy/make.py: [[0, 1, 2], [3, 250, 5]] in many types, byte orders and layouts.
TEST(io_npz, EveryTypeAndOrder) {
  const auto folder = test::source_dir() / "tests/golden/numpy";
  const at::Tensor base = at::tensor({0, 1, 2, 3, 250, 5}, at::kDouble).view({2, 3});
  const ParameterSet t = read_npz(folder / "arrays.npz");
  EXPECT_GE(t.size(), 18u);
  for (const auto& [name, x] : t) {
    if (name == "scalar" || name == "empty" || name == "bool" || name == "i1") continue;
    EXPECT_TRUE(at::equal(x.to(at::kDouble), base)) << name;
  }
  EXPECT_EQ(t.at("scalar").item<double>(), 2.5);
  EXPECT_EQ(t.at("scalar").dim(), 0);
  EXPECT_EQ(t.at("empty").sizes().vec(), (std::vector<std::int64_t>{0, 3}));
  EXPECT_TRUE(at::equal(t.at("bool"), base > 2));
  EXPECT_EQ(t.at("i1")[1][1].item<int>(), -6);
  for (const char* name : {"version2.npy", "version3.npy"}) {
    EXPECT_TRUE(at::equal(read_npz(folder / name).at("arr_0").to(at::kDouble), base)) << name;
  }
}

TEST(io_npz, RefusalsSayWhyAndOnlyMatterWhenAskedFor) {
  const auto file = test::source_dir() / "tests/golden/numpy/refused.npz";
  const std::pair<const char*, const char*> refusals[] = {{"objects", "pickle"},
                                                          {"records", "records"},
                                                          {"text", "text"},
                                                          {"complex", "complex"},
                                                          {"huge", "2^63"}};
  for (const auto& [name, why] : refusals) {
    test::expect_error(ErrorKind::kBadFile, why, [&] { read_npz(file, {name}); });
  }
  EXPECT_EQ(read_npz(file, {"mu", "sigma"}).size(), 1u);
  EXPECT_EQ(npz_names(file).size(), 6u);
  const test::TempDir dir;
  write_file_atomic(dir / "long.npy",
                    read_file(test::source_dir() / "tests/golden/numpy/version2.npy") + "x");
  test::expect_error(ErrorKind::kBadFile, "25 data bytes, the header promises 24",
                     [&] { read_npz(dir / "long.npy"); });
}

// The format wants the data of an array at a multiple of 64 bytes, for memory maps.
TEST(io_npz, DataAreAligned) {
  const test::TempDir dir;
  for (const std::int64_t n : {6, 7}) {
    ParameterSet set;
    set.add(std::string(static_cast<std::size_t>(n), 'a'), at::full({n}, 0x41, at::kByte));
    write_npz(dir / "x.npz", set);
    EXPECT_EQ(read_file(dir / "x.npz").find(std::string(static_cast<std::size_t>(n), 'A')) % 64, 0u)
        << n;
  }
}

}  // namespace tiltflow
