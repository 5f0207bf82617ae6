// One set of rules chooses the weights of a file, whatever its format; what trainers say beside
// them is read as data.
#include "tiltflow/io/state_dict.h"
#include "tests/io/prefixed_tensors.h"
#include "tests/support.h"
#include "tiltflow/io/tensor_file.h"
#include "tiltflow/io/torch_file.h"
#include "tiltflow/io/zip_archive.h"

namespace tiltflow {
namespace {

using test::prefixed_tensors;

// What every format makes of flat tensors: 0 when nothing plain is left.
double taken(const ParameterSet& set, const std::string& section = "") {
  const test::TempDir dir;
  write_safetensors(dir / "x.safetensors", set);
  write_sharded_safetensors(dir / "y.safetensors.index.json", set, 1);
  write_torch_file(dir / "x.pt", {{"", set}});
  write_torch_file(dir / "z.pt", {{"state_dict", set}});
  std::vector<double> found;
  for (const char* name : {"x.safetensors", "y.safetensors.index.json", "x.pt", "z.pt"}) {
    const ParameterSet t = read_tensors(dir / name, section).tensors;
    const bool plain = t.size() == 2 && t.contains("fc.weight") && t.contains("blocks.0.bias");
    found.push_back(plain ? t.at("fc.weight")[0][0].item<double>() : 0);
    EXPECT_EQ(found.back(), found.front()) << name;
  }
  return found.front();
}

}  // namespace

TEST(io_state_dict, AveragesFirstThenModelInEveryFormat) {
  EXPECT_EQ(taken(prefixed_tensors({{"", 1}})), 1);
  EXPECT_EQ(taken(prefixed_tensors({{"model.", 1}, {"ema.", 2}})), 2);
  EXPECT_EQ(taken(prefixed_tensors({{"online_model.", 1}, {"ema_model.", 2}})), 2);
  EXPECT_EQ(taken(prefixed_tensors({{"state_dict.", 1}, {"model_ema.", 2}})), 2);
  EXPECT_EQ(taken(prefixed_tensors({{"model.", 1}, {"ema.", 2}}), "model"), 1);
  EXPECT_EQ(taken(prefixed_tensors({{"", 1}, {"ema.", 2}})),
            2);  // averaged copies beside the weights
  EXPECT_EQ(taken(prefixed_tensors({{"", 1}, {"ema.", 2}}), "rest"), 1);
  EXPECT_EQ(choose_section({"critic", "model", "ema"}, "x"), "ema");
  EXPECT_EQ(choose_section({"critic", "state_dict", "model"}, "x"), "model");
  EXPECT_EQ(choose_section({"whatever"}, "x"), "whatever");
  test::expect_error(ErrorKind::kBadFile, "names that say nothing",
                     [] { choose_section({"one", "two"}, "x"); });
  test::expect_error(ErrorKind::kBadFile, "no state dict 'emma'",
                     [] { taken(prefixed_tensors({{"model.", 1}, {"ema.", 2}}), "emma"); });
}

// Lightning's networks beside losses and metrics: taken when they are named.
TEST(io_state_dict, SectionsBesideOtherModulesByName) {
  const ParameterSet both = prefixed_tensors({{"net.", 1}, {"metric.", 2}});
  EXPECT_EQ(taken(both), 0);
  EXPECT_EQ(taken(both, "net"), 1);
}

TEST(io_state_dict, NamesOfWrappersGo) {
  for (const char* prefix : {"module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.",
                             "model.", "ema_model.", "model.module.", "net.", "base_model.model.",
                             "_fsdp_wrapped_module.", "state_dict.", "transformer."}) {
    EXPECT_EQ(taken(prefixed_tensors({{prefix, 3}})), 3) << prefix;
  }
  ParameterSet compiled;  // block by block
  compiled.add("fc._orig_mod.weight", at::full({2, 2}, 4.0));
  compiled.add("blocks.0._checkpoint_wrapped_module.bias", at::full({2}, 4.0));
  EXPECT_EQ(taken(compiled), 4);
  ParameterSet averaged = prefixed_tensors({{"module.", 5}});  // AveragedModel
  averaged.add("n_averaged", at::full({}, 7));
  EXPECT_EQ(taken(averaged), 5);
  EXPECT_EQ(taken(prefixed_tensors({{"encoder.", 1}})), 0);  // a part of the network, not a wrapper
  ParameterSet adapter;
  adapter.add("base_model.model.fc.lora_A.weight", at::zeros({1, 2}));
  EXPECT_EQ(without_wrappers(adapter, "x").tensors.names(), adapter.names());
}

TEST(io_state_dict, MixturesAreRefused) {
  ParameterSet mixed = prefixed_tensors({{"module.", 1}});
  mixed.add("head.weight", at::zeros({1}));
  test::expect_error(ErrorKind::kBadFile, "named 'module....'", [&] { taken(mixed); });
  ParameterSet half = prefixed_tensors({{"", 1}});  // averages of some weights only
  half.add("ema.fc.weight", at::zeros({2, 2}));
  test::expect_error(ErrorKind::kBadFile, "named 'ema....'", [&] { taken(half); });
  ParameterSet twice = prefixed_tensors({{"", 1}});
  twice.add("_orig_mod.fc.weight", at::zeros({2, 2}));
  test::expect_error(ErrorKind::kBadFile, "two tensors are named 'fc.weight'",
                     [&] { taken(twice); });
}

TEST(io_state_dict, SectionsOneLevelDeeper) {
  const test::TempDir dir;
  write_torch_file(dir / "x.pt", {{"model", prefixed_tensors({{"", 1}})},
                                  {"ema_state_dict", prefixed_tensors({{"module.", 2}})}});
  EXPECT_EQ(read_state_dict(dir / "x.pt").section, "ema_state_dict");
  EXPECT_EQ(read_state_dict(dir / "x.pt").prefix, "module.");
  EXPECT_EQ(read_tensors(dir / "x.pt").tensors.at("fc.weight")[0][0].item<double>(), 2);
}

// torch.save(model) instead of torch.save(model.state_dict()).
TEST(io_state_dict, WholeModulesAreNamed) {
  const test::TempDir dir;
  const std::string module = "(itorch.nn\nLinear\n(dS'_parameters'\n(dsb";
  for (const std::string& pickle : {module + ".", "(dS'model'\n" + module + "s."}) {
    write_zip(dir / "x.pt", {{"archive/data.pkl", pickle}});
    test::expect_error(ErrorKind::kBadFile, "holds a whole pickled torch.nn.Linear",
                       [&] { read_tensors(dir / "x.pt"); });
  }
}

}  // namespace tiltflow
