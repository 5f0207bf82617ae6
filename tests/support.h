// Helpers shared by tests.
#pragma once

#include <gtest/gtest.h>

#include <filesystem>
#include <functional>
#include <string>

#include "tiltflow/base/error.h"
#include "tiltflow/base/file.h"
#include "tiltflow/io/safetensors.h"
#include "tiltflow/tensor/aten.h"

namespace tiltflow::test {

inline std::filesystem::path source_dir() { return TILTFLOW_SOURCE_DIR; }
inline std::filesystem::path golden(const std::string& name) {
  return source_dir() / "tests/golden/sit" / name;
}

inline std::filesystem::path golden_onestep(const std::string& name) {
  return source_dir() / "tests/golden/onestep" / name;
}

// A folder that disappears with the object.
class TempDir {
 public:
  std::filesystem::path operator/(const std::string& name) const { return folder_.path() / name; }
  const std::filesystem::path& path() const { return folder_.path(); }

 private:
  ScratchFolder folder_{"tiltflow-test"};
};

inline double relative_error(const at::Tensor& found, const at::Tensor& expected) {
  const at::Tensor a = found.to(at::kDouble);
  const at::Tensor b = expected.to(at::kDouble);
  return ((a - b).abs().max() / b.abs().max()).item<double>();
}

// Runs `work`, expects a tiltflow::Error of `kind` whose message contains `text`.
inline void expect_error(ErrorKind kind, const std::string& text,
                         const std::function<void()>& work) {
  try {
    work();
    ADD_FAILURE() << "no error; expected one about '" << text << "'";
  } catch (const Error& error) {
    EXPECT_EQ(static_cast<int>(error.kind()), static_cast<int>(kind)) << error.what();
    EXPECT_NE(std::string(error.what()).find(text), std::string::npos) << error.what();
  }
}

}  // namespace tiltflow::test
