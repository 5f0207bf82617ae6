// One set of rules chooses the weights of a file, whatever its format; what trainers say beside
// them is read as data.
#include "tiltflow/io/state_dict.h"
#include "tests/support.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/io/checkpoint_arguments.h"
#include "tiltflow/io/tensor_file.h"
#include "tiltflow/io/torch_file.h"
#include "tiltflow/io/zip_archive.h"

namespace tiltflow {
namespace {

// Two tensors with the given value under each prefix.
ParameterSet tensors(const std::vector<std::pair<std::string, double>>& prefixes) {
  ParameterSet out;
  for (const auto& [prefix, value] : prefixes) {
    out.add(prefix + "fc.weight", at::full({2, 2}, value));
    out.add(prefix + "blocks.0.bias", at::full({2}, value));
  }
  return out;
}

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

std::map<std::string, std::string> arguments(const std::string& value) {
  return checkpoint_arguments(*parse_pickle(cat("(dS'args'\n", value, "s."), "x").root);
}

const std::string kNested = "(dS'path_type'\nS'GVP'\nsS'num_heads'\nI4\ns";

}  // namespace

TEST(io_state_dict, AveragesFirstThenModelInEveryFormat) {
  EXPECT_EQ(taken(tensors({{"", 1}})), 1);
  EXPECT_EQ(taken(tensors({{"model.", 1}, {"ema.", 2}})), 2);
  EXPECT_EQ(taken(tensors({{"online_model.", 1}, {"ema_model.", 2}})), 2);
  EXPECT_EQ(taken(tensors({{"state_dict.", 1}, {"model_ema.", 2}})), 2);
  EXPECT_EQ(taken(tensors({{"model.", 1}, {"ema.", 2}}), "model"), 1);
  EXPECT_EQ(taken(tensors({{"", 1}, {"ema.", 2}})), 2);  // averaged copies beside the weights
  EXPECT_EQ(taken(tensors({{"", 1}, {"ema.", 2}}), "rest"), 1);
  EXPECT_EQ(choose_section({"critic", "model", "ema"}, "x"), "ema");
  EXPECT_EQ(choose_section({"critic", "state_dict", "model"}, "x"), "model");
  EXPECT_EQ(choose_section({"whatever"}, "x"), "whatever");
  test::expect_error(ErrorKind::kBadFile, "names that say nothing",
                     [] { choose_section({"one", "two"}, "x"); });
  test::expect_error(ErrorKind::kBadFile, "no state dict 'emma'",
                     [] { taken(tensors({{"model.", 1}, {"ema.", 2}}), "emma"); });
}

// Lightning's networks beside losses and metrics: taken when they are named.
TEST(io_state_dict, SectionsBesideOtherModulesByName) {
  const ParameterSet both = tensors({{"net.", 1}, {"metric.", 2}});
  EXPECT_EQ(taken(both), 0);
  EXPECT_EQ(taken(both, "net"), 1);
}

TEST(io_state_dict, NamesOfWrappersGo) {
  for (const char* prefix : {"module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.",
                             "model.", "ema_model.", "model.module.", "net.", "base_model.model.",
                             "_fsdp_wrapped_module.", "state_dict.", "transformer."}) {
    EXPECT_EQ(taken(tensors({{prefix, 3}})), 3) << prefix;
  }
  ParameterSet compiled;  // block by block
  compiled.add("fc._orig_mod.weight", at::full({2, 2}, 4.0));
  compiled.add("blocks.0._checkpoint_wrapped_module.bias", at::full({2}, 4.0));
  EXPECT_EQ(taken(compiled), 4);
  ParameterSet averaged = tensors({{"module.", 5}});  // AveragedModel
  averaged.add("n_averaged", at::full({}, 7));
  EXPECT_EQ(taken(averaged), 5);
  EXPECT_EQ(taken(tensors({{"encoder.", 1}})), 0);  // a part of the network, not a wrapper
  ParameterSet adapter;
  adapter.add("base_model.model.fc.lora_A.weight", at::zeros({1, 2}));
  EXPECT_EQ(without_wrappers(adapter, "x").tensors.names(), adapter.names());
}

TEST(io_state_dict, MixturesAreRefused) {
  ParameterSet mixed = tensors({{"module.", 1}});
  mixed.add("head.weight", at::zeros({1}));
  test::expect_error(ErrorKind::kBadFile, "named 'module....'", [&] { taken(mixed); });
  ParameterSet half = tensors({{"", 1}});  // averages of some weights only
  half.add("ema.fc.weight", at::zeros({2, 2}));
  test::expect_error(ErrorKind::kBadFile, "named 'ema....'", [&] { taken(half); });
  ParameterSet twice = tensors({{"", 1}});
  twice.add("_orig_mod.fc.weight", at::zeros({2, 2}));
  test::expect_error(ErrorKind::kBadFile, "two tensors are named 'fc.weight'",
                     [&] { taken(twice); });
}

TEST(io_state_dict, SectionsOneLevelDeeper) {
  const test::TempDir dir;
  write_torch_file(dir / "x.pt",
                   {{"model", tensors({{"", 1}})}, {"ema_state_dict", tensors({{"module.", 2}})}});
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

// dict, argparse.Namespace, a subclass of dict, OmegaConf, ConfigDict, slots: the same values.
TEST(io_checkpoint_arguments, EveryContainerSaysTheSame) {
  const std::map<std::string, std::string> expected{{"args.path_type", "GVP"},
                                                    {"args.num_heads", "4"}};
  EXPECT_EQ(arguments(kNested), expected);
  EXPECT_EQ(arguments("(iargparse\nNamespace\n" + kNested + "b"), expected);
  EXPECT_EQ(arguments("(ieasydict\nEasyDict\nS'path_type'\nS'GVP'\nsS'num_heads'\nI4\ns"),
            expected);
  EXPECT_EQ(
      arguments("(iml_collections\nConfigDict\n(dS'_fields'\n" + kNested + "sS'_locked'\nI01\nsb"),
      expected);
  EXPECT_EQ(arguments("(imine\nSlots\n(N" + kNested + "tb"), expected);
  EXPECT_EQ(
      arguments("(imine\nPydantic\n(dS'__dict__'\n" + kNested + "sS'__pydantic_extra__'\nNsb"),
      expected);
  const std::string omega =
      "(iomegaconf.dictconfig\nDictConfig\n(dS'_metadata'\nNsS'_content'\n"
      "(dS'path_type'\n(iomegaconf.nodes\nAnyNode\n(dS'_val'\nS'GVP'\nsbs"
      "S'num_heads'\n(iomegaconf.nodes\nAnyNode\n(dS'_val'\nI4\nsbs"
      "sb";
  EXPECT_EQ(arguments(omega), expected);
  EXPECT_EQ(arguments("(dS'path_type'\n(S'GVP'\nimine\nPathType\nsS'num_heads'\nI4\ns"),
            expected);  // an enumeration
}

// Sizes come from the file: NumPy has numbers of one, two, four and eight bytes.
TEST(io_checkpoint_arguments, NumpyNumbersOfImpossibleSizesAreNone) {
  const auto argument = [](const std::string& type, const std::string& bytes) {
    const std::string dtype = "cnumpy\ndtype\nU\x02" + type + "\x85R";
    const std::string length(1, static_cast<char>(bytes.size()));
    const std::string scalar =
        "cnumpy.core.multiarray\nscalar\n(" + dtype + "C" + length + bytes + "tR";
    const PickleDocument document = parse_pickle(
        "}U\x04"
        "args}U\x01x" +
            scalar + "ss.",
        "x");
    return checkpoint_arguments(*document.root).at("args.x");
  };
  EXPECT_EQ(argument("i8", "\x07" + std::string(7, '\0')), "7");
  EXPECT_EQ(argument("i1", "\xfd"), "-3");
  for (const char size : {'0', '3', '9'}) {
    const std::string text = argument(std::string("i") + size, std::string(size - '0', '\x07'));
    EXPECT_NE(text.find("scalar"), std::string::npos) << size << ": " << text;
  }
}

TEST(io_checkpoint_arguments, NestedValuesHaveDottedNames) {
  const auto found = arguments("(dS'transport'\n" + kNested + "sS'none'\nNsS'rate'\nF0.5\ns");
  EXPECT_EQ(found.at("args.transport.path_type"), "GVP");
  EXPECT_EQ(found.at("args.none"), "None");
  EXPECT_EQ(found.at("args.rate"), "0.5");
  EXPECT_TRUE(arguments("(dS'param_groups'\n(lsS'lr'\nF0.5\ns").empty());  // an optimiser
}

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
  write_torch_file(dir / "x.pt", {{"ema", tensors({{"", 2}})}}, beside);
  EXPECT_EQ(read_tensors(dir / "x.pt").metadata, expected);
  EXPECT_EQ(read_tensors(dir / "x.pt").tensors.size(), 2u);
  write_torch_file(dir / "bare.pt", {{"", tensors({{"", 2}})}}, beside);  // as attributes
  expected.erase("section");
  EXPECT_EQ(read_tensors(dir / "bare.pt").metadata, expected);
  EXPECT_EQ(read_tensors(dir / "bare.pt").tensors.size(), 2u);
}

}  // namespace tiltflow
