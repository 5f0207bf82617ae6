#include <cstdlib>

#include "tests/support.h"
#include "tiltflow/tensor/process_group.h"

namespace tiltflow {

TEST(tensor_process_group, TheEnvironmentIsReadByLauncher) {
  const auto with = [](std::initializer_list<std::pair<const char*, const char*>> variables) {
    for (const char* name :
         {"WORLD_SIZE", "RANK", "LOCAL_WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK",
          "SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_NTASKS", "MASTER_ADDR", "MASTER_PORT"}) {
      ::unsetenv(name);
    }
    for (const auto& [name, value] : variables) ::setenv(name, value, 1);
    return world_from_environment();
  };
  EXPECT_EQ(with({{"SLURM_NTASKS", "4"}, {"SLURM_PROCID", "0"}}).size, 1)
      << "a batch script is one process";
  EXPECT_EQ(with({{"SLURM_STEP_NUM_TASKS", "4"}, {"SLURM_PROCID", "3"}}).rank, 3);
  const WorldInfo torchrun = with({{"WORLD_SIZE", "2"},
                                   {"RANK", "1"},
                                   {"SLURM_STEP_NUM_TASKS", "1"},
                                   {"SLURM_PROCID", "0"},
                                   {"MASTER_PORT", "1234"}});
  EXPECT_EQ(torchrun.rank, 1);
  EXPECT_EQ(torchrun.size, 2);
  EXPECT_EQ(torchrun.port, 1234);
  test::expect_error(ErrorKind::kConfig, "this process's rank = '2'",
                     [&] { with({{"WORLD_SIZE", "2"}, {"RANK", "2"}}); });
  test::expect_error(ErrorKind::kConfig, "WORLD_SIZE = 2 and RANK = 0, but neither",
                     [&] { with({{"WORLD_SIZE", "2"}, {"RANK", "0"}}); });
  EXPECT_EQ(with({{"WORLD_SIZE", "1"}, {"RANK", "0"}}).size, 1) << "one process needs no address";
  EXPECT_EQ(with({{"WORLD_SIZE", "2"}}).size, 1) << "a size without a rank is nobody's launcher";
  EXPECT_EQ(with({}).size, 1);
}

}  // namespace tiltflow
