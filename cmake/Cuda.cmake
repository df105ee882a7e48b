# What there is of CUDA on this machine, and the flags of its files. No GPU or driver is needed to build.
#
#   KVASIR_CUDA        AUTO (on where nvcc is found), ON, OFF: whether the backend's plugin is built
#   KVASIR_WITH_CUDA   the outcome
#   KVASIR_WITH_NCCL   whether there is NCCL's header: programs open the library at run time, where it is
#   KVASIR_SIMULATOR   whether kernels are also built to run on the CPU, for tests: needs CUDA's headers

set(KVASIR_CUDA AUTO CACHE STRING "build the CUDA backend: AUTO (where nvcc is found), ON or OFF")
set_property(CACHE KVASIR_CUDA PROPERTY STRINGS AUTO ON OFF)

find_program(KVASIR_NVCC nvcc HINTS ENV CUDA_HOME PATH_SUFFIXES bin PATHS /usr/local/cuda)
mark_as_advanced(KVASIR_NVCC)

set(KVASIR_WITH_CUDA OFF)
if(KVASIR_CUDA STREQUAL "AUTO")
    if(KVASIR_NVCC)
        set(KVASIR_WITH_CUDA ON)
    endif()
elseif(KVASIR_CUDA)
    if(NOT KVASIR_NVCC)
        message(FATAL_ERROR "KVASIR_CUDA is ON, but nvcc is not in PATH, $CUDA_HOME/bin or /usr/local/cuda/bin")
    endif()
    set(KVASIR_WITH_CUDA ON)
endif()

if(KVASIR_WITH_CUDA)
    # A100; A10 and the like; H100 and H200, and by way of its virtual code what comes after.
    if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
        set(CMAKE_CUDA_ARCHITECTURES "80-real;86-real;90-real;90-virtual")
    endif()
    set(CMAKE_CUDA_COMPILER ${KVASIR_NVCC})
    set(CMAKE_CUDA_STANDARD 17)
    set(CMAKE_CUDA_STANDARD_REQUIRED ON)
    set(CMAKE_CUDA_RUNTIME_LIBRARY Shared)
    enable_language(CUDA)
    find_package(CUDAToolkit REQUIRED)
endif()

# ptxas prints registers, shared memory and spills of each kernel into the build's output.
add_library(kvasir_cuda_flags INTERFACE)
target_compile_options(kvasir_cuda_flags INTERFACE
    $<$<COMPILE_LANGUAGE:CUDA>:-Werror=all-warnings;-Xptxas=-v,-warn-spills>
    "$<$<COMPILE_LANGUAGE:CUDA>:SHELL:-Xcompiler -Wall,-Wextra,-fno-strict-aliasing>")

# ---- the simulator -----------------------------------------------------------------------------

find_path(KVASIR_CUDA_INCLUDE cuda_runtime_api.h
    HINTS ${CUDAToolkit_INCLUDE_DIRS} ENV CUDA_HOME PATH_SUFFIXES include PATHS /usr/local/cuda)
mark_as_advanced(KVASIR_CUDA_INCLUDE)

find_path(KVASIR_NCCL_INCLUDE nccl.h HINTS ${KVASIR_CUDA_INCLUDE})
mark_as_advanced(KVASIR_NCCL_INCLUDE)
set(KVASIR_WITH_NCCL OFF)
if(KVASIR_NCCL_INCLUDE AND KVASIR_CUDA_INCLUDE)
    set(KVASIR_WITH_NCCL ON)
endif()

set(KVASIR_SIMULATOR OFF)
# The thread sanitizer does not see that fibers are no threads; they never run at once anyway.
if(KVASIR_TESTS AND KVASIR_CUDA_INCLUDE AND NOT KVASIR_SANITIZE MATCHES "thread")
    include(CheckLanguage)
    check_language(CXX)
    if(CMAKE_CXX_COMPILER)
        enable_language(CXX)
        set(CMAKE_CXX_STANDARD 17)
        set(CMAKE_CXX_STANDARD_REQUIRED ON)
        set(CMAKE_CXX_EXTENSIONS OFF)
        foreach(type RELEASE RELWITHDEBINFO DEBUG)
            set(CMAKE_CXX_FLAGS_${type} "${CMAKE_C_FLAGS_${type}}")
        endforeach()
        set(KVASIR_SIMULATOR ON)
    endif()
endif()
