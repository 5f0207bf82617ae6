#include "tiltflow/io/checkpoint_arguments.h"
#include "tests/support.h"
#include "tiltflow/base/strings.h"

namespace tiltflow {
namespace {

std::map<std::string, std::string> arguments(const std::string& value) {
  return checkpoint_arguments(*parse_pickle(cat("(dS'args'\n", value, "s."), "x").root);
}

const std::string kNested = "(dS'path_type'\nS'GVP'\nsS'num_heads'\nI4\ns";

}  // namespace

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

}  // namespace tiltflow
