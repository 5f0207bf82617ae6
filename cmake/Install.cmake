# What `cmake --install` writes: the library with its headers, the program, a CMake package (find_package(tiltflow)) and a pkg-config file. All of
# it may be moved together; libtorch is used where the build found it.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)
if(TILTFLOW_SANITIZER)
  install(CODE "message(FATAL_ERROR \"a library built with TILTFLOW_SANITIZER=${TILTFLOW_SANITIZER} is not for installation\")")
  return()
endif()

install(TARGETS tiltflow_lib EXPORT tiltflowTargets ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR}
  INCLUDES DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(DIRECTORY src/tiltflow DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} FILES_MATCHING PATTERN "*.h")
if(TILTFLOW_BUILD_PROGRAM)
  set_target_properties(tiltflow PROPERTIES INSTALL_RPATH ${Libtorch_LIBRARY_DIR})
  install(TARGETS tiltflow RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
endif()

# The C++ interface of libtorch changes from one minor version to the next.
string(REGEX MATCH "^([0-9]+)\\.([0-9]+)" TILTFLOW_LIBTORCH_VERSIONS ${Libtorch_VERSION})
math(EXPR next_minor "${CMAKE_MATCH_2} + 1")
string(APPEND TILTFLOW_LIBTORCH_VERSIONS "...<${CMAKE_MATCH_1}.${next_minor}")
set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/tiltflow)
install(EXPORT tiltflowTargets NAMESPACE tiltflow:: DESTINATION ${package_dir})
configure_package_config_file(cmake/tiltflowConfig.cmake.in tiltflowConfig.cmake INSTALL_DESTINATION ${package_dir})
write_basic_package_version_file(tiltflowConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/tiltflowConfig.cmake ${PROJECT_BINARY_DIR}/tiltflowConfigVersion.cmake cmake/FindLibtorch.cmake cmake/FindWebP.cmake
  DESTINATION ${package_dir})

# With CUDA, the libraries that CMake finds with libtorch are too many to be named by hand: no pkg-config file.
if(NOT TARGET torch_cuda)
  set(pkgconfig_dir ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
  file(RELATIVE_PATH prefix_from_pkgconfig /prefix/${pkgconfig_dir} /prefix)
  string(REGEX REPLACE "/$" "" prefix_from_pkgconfig ${prefix_from_pkgconfig})
  configure_file(cmake/tiltflow.pc.in tiltflow.pc @ONLY)
  install(FILES ${PROJECT_BINARY_DIR}/tiltflow.pc DESTINATION ${pkgconfig_dir})
endif()
