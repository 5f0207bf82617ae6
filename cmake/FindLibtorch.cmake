# libtorch, the C++ library of PyTorch, as the target Libtorch::Libtorch; CMake's Torch alone gives no target with everything.
#   find_package(Libtorch 2.11 REQUIRED)           this version or a newer one
#   find_package(Libtorch 2.13...<2.14 REQUIRED)   one of these
# Looked for in this order: Torch_DIR and CMAKE_PREFIX_PATH as given; the torch of the Python that TILTFLOW_PYTHON names; that of
# tiltflow's private environment, which the Makefile makes when no Python has a torch that is new enough; that of python3.
# Sets Libtorch_FOUND, Libtorch_VERSION, Libtorch_DIR (its folder) and Libtorch_LIBRARY_DIR.

# With CUDA: for the GPU of this machine; where there is none, for those that have bf16.
if(NOT DEFINED TORCH_CUDA_ARCH_LIST AND NOT DEFINED ENV{TORCH_CUDA_ARCH_LIST} AND NOT EXISTS /dev/nvidiactl)
  set(TORCH_CUDA_ARCH_LIST "8.0;8.6;8.9;9.0+PTX")
endif()
find_package(Torch QUIET)
if(NOT Torch_FOUND)
  foreach(candidate "${TILTFLOW_PYTHON}" "${CMAKE_CURRENT_LIST_DIR}/../build/venv/bin/python" python3)
    if(candidate)
      execute_process(COMMAND ${candidate} -c "import torch; print(torch.utils.cmake_prefix_path)"
        OUTPUT_VARIABLE torch_prefix OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET RESULT_VARIABLE torch_status)
      if(torch_status EQUAL 0)
        list(PREPEND CMAKE_PREFIX_PATH ${torch_prefix})
        break()
      endif()
    endif()
  endforeach()
  find_package(Torch QUIET)
endif()

set(Libtorch_VERSION ${Torch_VERSION})
set(Libtorch_DIR ${TORCH_INSTALL_PREFIX})
set(Libtorch_LIBRARY_DIR ${TORCH_INSTALL_PREFIX}/lib)
set(libtorch_problem "Run `make`, which installs the pinned wheel, or set Torch_DIR to the folder of the right TorchConfig.cmake.")
if("${TORCH_CXX_FLAGS}" MATCHES "_GLIBCXX_USE_CXX11_ABI=0")
  set(Torch_FOUND FALSE)
  set(libtorch_problem "${TORCH_INSTALL_PREFIX} uses the old C++ string ABI; use a build with _GLIBCXX_USE_CXX11_ABI=1.")
endif()
include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(Libtorch REQUIRED_VARS TORCH_LIBRARY Torch_FOUND VERSION_VAR Libtorch_VERSION HANDLE_VERSION_RANGE
  REASON_FAILURE_MESSAGE "${libtorch_problem}")
if(Libtorch_FOUND AND NOT TARGET Libtorch::Libtorch)
  add_library(Libtorch::Libtorch INTERFACE IMPORTED)
  target_link_libraries(Libtorch::Libtorch INTERFACE ${TORCH_LIBRARIES})
endif()
