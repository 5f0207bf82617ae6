#include "tiltflow/base/folder_claim.h"
#include "tests/support.h"
#include "tiltflow/base/strings.h"

namespace tiltflow {
namespace {

namespace fs = std::filesystem;

using test::expect_error;

}  // namespace

TEST(base_folder_claim, AFolderHasOneWriterOrLanes) {
  const test::TempDir dir;
  {
    const FolderClaim whole(dir / "o");
    expect_error(ErrorKind::kFailure,
                 cat("another process writes to ", (dir / "o").string(), ": process "),
                 [&] { FolderClaim(dir / "o"); });
    expect_error(ErrorKind::kFailure, "another process writes",
                 [&] { FolderClaim(dir / "o", "shard-0"); });
  }
  {
    const FolderClaim zero(dir / "o", "shard-0");
    const FolderClaim one(dir / "o", "shard-1");
    expect_error(ErrorKind::kFailure, "another process writes",
                 [&] { FolderClaim(dir / "o", "shard-1"); });
    expect_error(ErrorKind::kFailure, "another process writes", [&] { FolderClaim(dir / "o"); });
  }
  EXPECT_FALSE(fs::exists(dir / "o")) << "claims leave nothing behind";
  fs::create_directories(dir / "o");
  const FolderClaim file = FolderClaim::of_file(dir / "o/file");
  expect_error(ErrorKind::kFailure, "another process writes",
               [&] { FolderClaim::of_file(dir / "o/file"); });
  EXPECT_NO_THROW(FolderClaim::of_file(dir / "o" / std::string(250, 'n')));
  EXPECT_NO_THROW(FolderClaim::of_file("/dev/null"));
}

}  // namespace tiltflow
