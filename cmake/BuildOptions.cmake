# Warnings and sanitizers of tiltflow's own targets. They are private: projects that use the library choose theirs.
# g++ 12 reports impossible string sizes inside its own library at -O2 (GCC bugs 105329, 105651); those warnings are off.
function(tiltflow_build_options target)
  target_compile_options(${target} PRIVATE $<$<COMPILE_LANGUAGE:CXX>:-Wall;-Wextra;-Wno-missing-field-initializers;-Wno-restrict;-Wno-stringop-overflow;-Wno-array-bounds;-Wno-maybe-uninitialized>)
  if(TILTFLOW_WARNINGS_AS_ERRORS)
    target_compile_options(${target} PRIVATE $<$<COMPILE_LANGUAGE:CXX>:-Werror>)
  endif()
  if(TILTFLOW_SANITIZER)
    target_compile_options(${target} PRIVATE -fsanitize=${TILTFLOW_SANITIZER} -fno-omit-frame-pointer)
    target_link_options(${target} PRIVATE -fsanitize=${TILTFLOW_SANITIZER})
  endif()
endfunction()
