#include <cstring>

#include "tests/support.h"
#include "tiltflow/io/pickle.h"

namespace tiltflow {
namespace {

std::string pickle_error(const std::string& bytes) {
  try {
    parse_pickle(bytes, "x");
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

}  // namespace

// Nothing is executed: a pickle that would delete files in Python is a node with a name.
TEST(io_pickle, CallsStayInert) {
  const PickleDocument document = parse_pickle(
      "\x80\x02"
      "cposix\nsystem\nU\x06rm -rf\x85R.",
      "x");
  EXPECT_EQ(pickle_text(*document.root), "posix.system('rm -rf')");
}

TEST(io_pickle, HostilePickles) {
  EXPECT_NE(pickle_error("").find("ends too early"), std::string::npos);
  EXPECT_NE(pickle_error("\x80\x09.").find("protocol"), std::string::npos);
  EXPECT_NE(pickle_error("h\x05.").find("memo"), std::string::npos);
  EXPECT_NE(pickle_error("0.").find("mark"), std::string::npos);
  EXPECT_NE(pickle_error("t.").find("mark"), std::string::npos);
  EXPECT_NE(pickle_error("NNs.").find("empty stack"), std::string::npos);
  EXPECT_NE(pickle_error("X\xff\xff\xff\xff"
                         "a.")
                .find("too long"),
            std::string::npos);
  EXPECT_NE(pickle_error("\xfe.").find("unknown opcode"), std::string::npos);
  // a list that contains itself, and lists nested a million deep: printed up to a bound, freed
  // without recursion
  EXPECT_NE(pickle_text(*parse_pickle("]q\x01h\x01"
                                      "a.",
                                      "x")
                             .root)
                .find("..."),
            std::string::npos);
  std::string deep(1'000'000, ']');
  deep += std::string(999'999, 'a') + ".";
  EXPECT_NE(pickle_text(*parse_pickle(deep, "x").root).find("..."), std::string::npos);
  // bytes that double with every call
  std::string bomb = "(";
  for (int i = 0; i < 200; ++i) bomb += "K\x01";
  bomb += "tq\x01";
  for (int i = 0; i < 1'000'000; ++i) bomb += "cbuiltins\nlist\nh\x01\x85R0";
  EXPECT_NE(pickle_error(bomb + "N.").find("blows up"), std::string::npos);
}

}  // namespace tiltflow
