#include <cstring>
#include <fstream>
#include <random>

#include "tests/io/prefixed_tensors.h"
#include "tests/support.h"
#include "tiltflow/base/file.h"
#include "tiltflow/io/tensor_file.h"
#include "tiltflow/io/torch_file.h"

namespace tiltflow {
namespace {

using test::prefixed_tensors;

std::filesystem::path sample(const std::string& name) {
  return test::source_dir() / "tests/golden/torch" / name;
}

void expect_all_kinds(const ParameterSet& t) {
  const at::Tensor base = at::arange(24, at::kFloat).reshape({4, 6}) / 8;
  EXPECT_EQ(t.size(), 14u);
  EXPECT_TRUE(at::equal(t.at("plain"), base));
  EXPECT_TRUE(at::equal(t.at("transposed"), base.t()));
  EXPECT_TRUE(t.at("transposed").is_contiguous());
  EXPECT_TRUE(at::equal(t.at("slice"), base.slice(0, 1, 3).slice(1, 0, 6, 2)));
  EXPECT_TRUE(at::equal(t.at("expanded"), at::full({3}, 2.5)));
  EXPECT_TRUE(at::equal(t.at("half"), base[0].to(at::kHalf)));
  EXPECT_TRUE(at::equal(t.at("brain"), base[0].to(at::kBFloat16)));
  EXPECT_TRUE(at::equal(t.at("double"), base[0].to(at::kDouble)));
  EXPECT_TRUE(at::equal(
      t.at("long"), at::tensor(std::vector<std::int64_t>{-1, std::int64_t{1} << 40}, at::kLong)));
  EXPECT_EQ(t.at("int").item<int>(), -7);
  EXPECT_EQ(t.at("byte").item<int>(), 255);
  EXPECT_TRUE(t.at("bool")[0].item<bool>());
  EXPECT_EQ(t.at("scalar").dim(), 0);
  EXPECT_EQ(t.at("empty").sizes(), (std::vector<std::int64_t>{0, 3}));
  EXPECT_TRUE(at::equal(t.at("parameter"), at::tensor(std::vector<float>{1, -1})));
}

}  // namespace

// Plain values beside the tensors, or as attributes of a bare state dict, come back as they were.
TEST(io_torch_file, PlainValuesBesideTensors) {
  const test::TempDir dir;
  const PlainDicts beside{{"args",
                           {{"path_type", "GVP"},
                            {"num_heads", std::int64_t{70000}},
                            {"learn_sigma", true},
                            {"mlp_ratio", 2.5}}},
                          {"metadata", {{"tiltflow.path", "gvp"}}}};
  std::map<std::string, std::string> expected{
      {"args.path_type", "GVP"}, {"args.num_heads", "70000"}, {"args.learn_sigma", "True"},
      {"args.mlp_ratio", "2.5"}, {"tiltflow.path", "gvp"},    {"section", "ema"}};
  write_torch_file(dir / "x.pt", {{"ema", prefixed_tensors({{"", 2}})}}, beside);
  EXPECT_EQ(read_tensors(dir / "x.pt").metadata, expected);
  EXPECT_EQ(read_tensors(dir / "x.pt").tensors.size(), 2u);
  write_torch_file(dir / "bare.pt", {{"", prefixed_tensors({{"", 2}})}}, beside);  // as attributes
  expected.erase("section");
  EXPECT_EQ(read_tensors(dir / "bare.pt").metadata, expected);
  EXPECT_EQ(read_tensors(dir / "bare.pt").tensors.size(), 2u);
}

TEST(io_torch_file, EveryKindOfTensorFromBothContainers) {
  expect_all_kinds(state_dict(read_torch_file(sample("zip.pt")), ""));
  expect_all_kinds(state_dict(read_torch_file(sample("stream.pt")), ""));
}

TEST(io_torch_file, TrainerFilesHaveSectionsAndInertArguments) {
  const TorchFile file = read_torch_file(sample("trainer.pt"));
  EXPECT_EQ(state_dict_sections(file), (std::vector<std::string>{"model", "ema"}));
  const ParameterSet model = state_dict(file, "model");
  const ParameterSet ema = read_tensors(sample("trainer.pt")).tensors;  // written with "module."
  EXPECT_EQ(ema.names(), model.names());
  EXPECT_TRUE(at::equal(ema.at("weight"), model.at("weight") + 1));
  const std::string args = pickle_text(*file.document.root->find("args"));
  EXPECT_NE(args.find("argparse.Namespace"), std::string::npos) << args;
  EXPECT_NE(args.find("'lr': 0.001"), std::string::npos) << args;
  EXPECT_EQ(file.document.root->find("epoch")->integer, 3);
  EXPECT_TRUE(tensors_below(file, *file.document.root).contains("opt.state.0.exp_avg"));
  test::expect_error(ErrorKind::kBadFile, "no state dict 'emma'",
                     [&] { state_dict(file, "emma"); });
  EXPECT_TRUE(state_dict_sections(read_torch_file(sample("no-tensors.pt"))).empty());
}

// A random state, a loss or a step at the root are no weights; a tensor among the arguments does
// not hide them.
TEST(io_torch_file, SingleTensorsBesideSections) {
  const TorchFile file = read_torch_file(sample("beside.pt"));
  EXPECT_EQ(state_dict_sections(file), (std::vector<std::string>{"model", "ema"}));
  const TensorFile taken = read_tensors(sample("beside.pt"));
  EXPECT_EQ(taken.tensors.names(), (std::vector<std::string>{"weight", "bias"}));
  EXPECT_EQ(taken.metadata.at("section"), "ema");
  EXPECT_EQ(taken.metadata.at("args.path_type"), "GVP");
  EXPECT_EQ(taken.metadata.at("args.num_heads"), "4");
  EXPECT_EQ(taken.metadata.at("args.decay"), "0.5");
  EXPECT_EQ(taken.metadata.at("args.use_ema"), "True");
  EXPECT_EQ(taken.metadata.at("args.shift"), "-3");
}

TEST(io_torch_file, TensorsWithoutPlainStorageAreNamed) {
  test::expect_error(ErrorKind::kBadFile, "'fc.mask' is no plain tensor (_rebuild_sparse_tensor)",
                     [] { read_tensors(sample("sparse.pt")); });
}

TEST(io_torch_file, RoundTrip) {
  const test::TempDir dir;
  const ParameterSet all = state_dict(read_torch_file(sample("zip.pt")), "");
  write_torch_file(dir / "bare.pt", {{"", all}});
  expect_all_kinds(state_dict(read_torch_file(dir / "bare.pt"), ""));
  write_torch_file(dir / "two.pt", {{"model", all}, {"ema", all}});
  const TorchFile two = read_torch_file(dir / "two.pt");
  EXPECT_EQ(state_dict_sections(two), (std::vector<std::string>{"model", "ema"}));
  expect_all_kinds(state_dict(two, "ema"));
}

// Every truncation, and thousands of files with one to four damaged bytes: an error or a value,
// never a crash.
TEST(io_torch_file, DamagedFilesAreErrors) {
  const test::TempDir dir;
  std::mt19937 random(7);
  const auto read_all = [&](const std::string& bytes) {
    const auto path = dir / "damaged.pt";
    std::ofstream(path, std::ios::binary)
        .write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    try {
      const TorchFile file = read_torch_file(path);
      tensors_below(file, *file.document.root);
      return true;
    } catch (const Error& error) {
      EXPECT_EQ(static_cast<int>(error.kind()), static_cast<int>(ErrorKind::kBadFile))
          << error.what();
      return false;
    }
  };
  for (const char* name : {"zip.pt", "stream.pt", "trainer.pt"}) {
    const std::string bytes = read_file(sample(name));
    ASSERT_TRUE(read_all(bytes)) << name;
    for (std::size_t n = 0; n < bytes.size(); n += 7) {
      EXPECT_FALSE(read_all(bytes.substr(0, n))) << name << " cut to " << n;
    }
    for (int i = 0; i < 2000; ++i) {
      std::string damaged = bytes;
      for (unsigned k = 0; k <= random() % 4; ++k) {
        damaged[random() % damaged.size()] = static_cast<char>(random());
      }
      read_all(damaged);
    }
  }
}

}  // namespace tiltflow
