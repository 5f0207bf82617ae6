#include "tiltflow/tensor/parameters.h"
#include "tests/support.h"

namespace tiltflow {

TEST(tensor_parameters, MisfitsAreListedTogether) {
  ParameterSet a, b;
  a.add("x", at::zeros({2}));
  a.add("y", at::zeros({3}));
  b.add("x", at::zeros({4}));
  b.add("z", at::zeros({1}));
  try {
    require_fit(a, b, "file");
    FAIL();
  } catch (const Error& error) {
    for (const char* part :
         {"shape of x: expected [2], found [4]", "missing: y [3]", "unexpected: z [1]"}) {
      EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
    }
  }
}

}  // namespace tiltflow
