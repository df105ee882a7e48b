# kvasir_library, kvasir_executable, kvasir_test: the only ways a target is made, so that every file
# of the project is compiled with the same flags (target kvasir_flags).
#
#   kvasir_library(name SOURCES a.c b.c [LINKS base ...] [PRIVATE_LINKS PkgConfig::JANSSON ...])
#       A static library. LINKS are passed on to who links it, PRIVATE_LINKS are seen by its own files
#       only (their headers cannot be included elsewhere).
#   kvasir_executable(name SOURCES main.c LINKS worker [PRIVATE_LINKS ...])
#       Lands in <build>/bin and also links `version` (base/version.h).
#   kvasir_test(name SOURCES test_x.c LINKS x [RANKS n] [LABELS l ...] [ENV K=V ...] [ARGS a ...]
#               [TIMEOUT seconds])
#       A cmocka program, run by ctest; also links base and tests/support. With RANKS it runs as n
#       ranks under mpirun. It carries its folder's name as a label, and `mpi` with RANKS.
#   kvasir_test_again(name target [RANKS n] [LABELS l ...] [ENV K=V ...] [ARGS a ...] [TIMEOUT seconds])
#       The program of another test, run in another way.

#   kvasir_fuzz(name SOURCES fuzz_x.c LINKS x [CORPUS folder of tests/fuzz/corpus] [GENERATOR x.c] [RUNS n])
#       A fuzz target as a test of n damaged inputs (tests/fuzz/fuzz_driver.h); with KVASIR_FUZZ also as
#       <name>_guided, a libFuzzer program.

include(CheckPIESupported)
check_pie_supported(LANGUAGES C)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
set(CMAKE_C_STANDARD 11)
set(CMAKE_C_STANDARD_REQUIRED ON)
set(CMAKE_C_EXTENSIONS OFF)

if(NOT CMAKE_BUILD_TYPE)
    set(CMAKE_BUILD_TYPE Release CACHE STRING "Debug or Release" FORCE)
endif()

# Asserts stay in Release: what is tested is what runs. They guard entries, never inner loops.
set(CMAKE_C_FLAGS_RELEASE "-O3 -g")
set(CMAKE_C_FLAGS_RELWITHDEBINFO "-O2 -g")
set(CMAKE_C_FLAGS_DEBUG "-O1 -g")

# ---- flags -------------------------------------------------------------------------------------

add_library(kvasir_flags INTERFACE)
target_compile_definitions(kvasir_flags INTERFACE _GNU_SOURCE)
set(c_flags
    -Wall -Wextra -Werror -Wconversion -Wshadow -Wvla -Wstrict-prototypes -Wmissing-prototypes
    # gcc cannot see that a failed status_t never reaches the code after TRY. Uninitialised values are
    # found by the analyzer (ops/check) instead.
    $<$<C_COMPILER_ID:GNU>:-Wno-maybe-uninitialized>
    # Text that is cut to fit is cut on purpose; gcc warns of it at -O2 and above only.
    $<$<C_COMPILER_ID:GNU>:-Wno-format-truncation>
    -Wno-format-zero-length) # log_write(..., "") has no further pairs
# C++ is for tests alone: kernels that run on the simulator.
set(cxx_flags -Wall -Wextra -Werror $<$<CXX_COMPILER_ID:GNU>:-Wno-maybe-uninitialized>)
target_compile_options(kvasir_flags INTERFACE
    "$<$<COMPILE_LANGUAGE:C>:${c_flags}>"
    "$<$<COMPILE_LANGUAGE:CXX>:${cxx_flags}>"
    $<$<COMPILE_LANGUAGE:C,CXX>:-fno-omit-frame-pointer>
    $<$<COMPILE_LANGUAGE:C,CXX>:-fno-strict-aliasing>
    # The same sums on every compiler: a*b+c is one rounding only where the code says fma.
    $<$<COMPILE_LANGUAGE:C,CXX>:-ffp-contract=off>)

if(KVASIR_SANITIZE)
    string(REPLACE "," ";" sanitizers "${KVASIR_SANITIZE}")
    foreach(sanitizer IN LISTS sanitizers)
        if(NOT sanitizer MATCHES "^(address|undefined|leak|thread)$")
            message(FATAL_ERROR "KVASIR_SANITIZE: '${sanitizer}' is none of address, undefined, leak, thread")
        endif()
    endforeach()
    target_compile_options(kvasir_flags INTERFACE
        "$<$<COMPILE_LANGUAGE:C,CXX>:-fsanitize=${KVASIR_SANITIZE};-fno-sanitize-recover=all>")
    target_link_options(kvasir_flags INTERFACE -fsanitize=${KVASIR_SANITIZE})
else()
    target_compile_options(kvasir_flags INTERFACE
        $<$<COMPILE_LANGUAGE:C,CXX>:-fstack-protector-strong>
        $<$<AND:$<COMPILE_LANGUAGE:C,CXX>,$<NOT:$<CONFIG:Debug>>>:-D_FORTIFY_SOURCE=2>)
endif()
if(KVASIR_FUZZ)
    if(NOT CMAKE_C_COMPILER_ID MATCHES "Clang")
        message(FATAL_ERROR "KVASIR_FUZZ needs clang (-DCMAKE_C_COMPILER=clang-14), this is ${CMAKE_C_COMPILER_ID}")
    endif()
    if(NOT KVASIR_SANITIZE MATCHES "address")
        message(FATAL_ERROR "KVASIR_FUZZ needs KVASIR_SANITIZE=address,undefined, whose runtime counts coverage")
    endif()
    target_compile_options(kvasir_flags INTERFACE -fsanitize=fuzzer-no-link)
endif()
target_link_options(kvasir_flags INTERFACE -Wl,--as-needed -Wl,-z,relro -Wl,-z,now -Wl,-z,noexecstack)

# ---- targets -----------------------------------------------------------------------------------

# The repository root is the include root; the build root holds generated headers, which are not
# ours to keep free of warnings.
function(kvasir_target_common target)
    target_include_directories(${target} PUBLIC ${PROJECT_SOURCE_DIR})
    target_include_directories(${target} SYSTEM PUBLIC ${PROJECT_BINARY_DIR})
    target_link_libraries(${target} PRIVATE kvasir_flags)
endfunction()

function(kvasir_library target)
    cmake_parse_arguments(PARSE_ARGV 1 arg "" "" "SOURCES;LINKS;PRIVATE_LINKS")
    kvasir_check_arguments(${target} "${arg_UNPARSED_ARGUMENTS}")
    add_library(${target} STATIC ${arg_SOURCES})
    kvasir_target_common(${target})
    target_link_libraries(${target} PUBLIC ${arg_LINKS} PRIVATE ${arg_PRIVATE_LINKS})
endfunction()

function(kvasir_executable target)
    cmake_parse_arguments(PARSE_ARGV 1 arg "" "" "SOURCES;LINKS;PRIVATE_LINKS")
    kvasir_check_arguments(${target} "${arg_UNPARSED_ARGUMENTS}")
    add_executable(${target} ${arg_SOURCES})
    kvasir_target_common(${target})
    target_link_libraries(${target} PRIVATE ${arg_LINKS} ${arg_PRIVATE_LINKS} version)
    set_target_properties(${target} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/bin)
endfunction()

function(kvasir_check_arguments target unparsed)
    if(unparsed)
        message(FATAL_ERROR "${target}: unknown arguments: ${unparsed}")
    endif()
endfunction()

# Sanitizer settings every test runs with. A malloc that fails is a case to handle, as without them;
# uninstrumented libraries are not ours to judge.
set(KVASIR_TEST_DATA "${PROJECT_SOURCE_DIR}/../shared/data" CACHE PATH
    "published model configurations and tokenizers to test against; those tests skip when it is missing")
set(KVASIR_TEST_ENV
    "KVASIR_TEST_DATA=${KVASIR_TEST_DATA}"
    "ASAN_OPTIONS=allocator_may_return_null=1:detect_stack_use_after_return=1:strict_string_checks=1"
    "UBSAN_OPTIONS=print_stacktrace=1"
    "LSAN_OPTIONS=suppressions=${PROJECT_SOURCE_DIR}/tests/support/lsan.supp:print_suppressions=0"
    "TSAN_OPTIONS=allocator_may_return_null=1:ignore_noninstrumented_modules=1:second_deadlock_stack=1")

# mpirun on one machine, with more ranks than cores: no ssh, no pinning, waiting ranks yield.
set(KVASIR_MPI_ENV
    OMPI_ALLOW_RUN_AS_ROOT=1
    OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
    OMPI_MCA_plm=isolated
    OMPI_MCA_mpi_yield_when_idle=1
    OMPI_MCA_btl=self,vader
    OMPI_MCA_btl_vader_single_copy_mechanism=none
    OMPI_MCA_opal_signal=)

# Of two jobs one may remove the folder in which the other is about to make its own: each test has a folder for its jobs.
function(kvasir_mpi_folder variable name)
    set(folder ${PROJECT_BINARY_DIR}/mpi/${name})
    file(MAKE_DIRECTORY ${folder})
    set(${variable} OMPI_MCA_orte_tmpdir_base=${folder} PARENT_SCOPE)
endfunction()

function(kvasir_test target)
    cmake_parse_arguments(PARSE_ARGV 1 arg "" "RANKS;TIMEOUT" "SOURCES;LINKS;LABELS;ENV;ARGS")
    kvasir_check_arguments(${target} "${arg_UNPARSED_ARGUMENTS}")
    add_executable(${target} ${arg_SOURCES})
    kvasir_target_common(${target})
    target_link_libraries(${target} PRIVATE ${arg_LINKS} test_support base)
    set_target_properties(${target} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/tests)
    kvasir_add_test(${target} ${target} "${arg_RANKS}" "${arg_LABELS}" "${arg_ENV}" "${arg_ARGS}"
        "${arg_TIMEOUT}")
endfunction()

function(kvasir_test_again name target)
    cmake_parse_arguments(PARSE_ARGV 2 arg "" "RANKS;TIMEOUT" "LABELS;ENV;ARGS")
    kvasir_check_arguments(${name} "${arg_UNPARSED_ARGUMENTS}")
    kvasir_add_test(${name} ${target} "${arg_RANKS}" "${arg_LABELS}" "${arg_ENV}" "${arg_ARGS}"
        "${arg_TIMEOUT}")
endfunction()

# The target again on each of the numbers of ranks, as NAME_2, NAME_3 ...; under the address sanitizer on the first of them alone:
# its code is the same on all, and uneven shares have the most to go wrong.
function(kvasir_test_on_ranks name target)
    cmake_parse_arguments(PARSE_ARGV 2 arg "" "TIMEOUT" "RANKS;LABELS;ENV;ARGS")
    kvasir_check_arguments(${name} "${arg_UNPARSED_ARGUMENTS}")
    foreach(ranks ${arg_RANKS})
        kvasir_add_test(${name}_${ranks} ${target} ${ranks} "${arg_LABELS}" "${arg_ENV}" "${arg_ARGS}" "${arg_TIMEOUT}")
        list(APPEND arg_LABELS no_asan)
    endforeach()
endfunction()

function(kvasir_add_test name target arg_RANKS arg_LABELS arg_ENV arg_ARGS arg_TIMEOUT)
    get_filename_component(folder ${CMAKE_CURRENT_SOURCE_DIR} NAME)
    set(labels ${folder} ${arg_LABELS})
    kvasir_mpi_folder(mpi_folder ${name})
    set(environment ${KVASIR_TEST_ENV} ${mpi_folder} ${arg_ENV})
    set(command $<TARGET_FILE:${target}> ${arg_ARGS})
    set(processors 1)
    if(arg_RANKS)
        list(APPEND labels mpi)
        list(APPEND environment ${KVASIR_MPI_ENV})
        set(command ${MPIEXEC_EXECUTABLE} --oversubscribe --bind-to none -n ${arg_RANKS} ${command})
        set(processors 2)
    endif()
    if(NOT arg_TIMEOUT)
        set(arg_TIMEOUT 60)
    endif()
    add_test(NAME ${name} COMMAND ${command})
    set_tests_properties(${name} PROPERTIES
        LABELS "${labels}" ENVIRONMENT "${environment}" TIMEOUT ${arg_TIMEOUT} PROCESSORS ${processors})
endfunction()

# The driver's main() and test_support stay out of the guided program: libFuzzer brings its own.
function(kvasir_fuzz target)
    cmake_parse_arguments(PARSE_ARGV 1 arg "" "CORPUS;GENERATOR;RUNS;TIMEOUT" "SOURCES;LINKS")
    kvasir_check_arguments(${target} "${arg_UNPARSED_ARGUMENTS}")
    if(NOT arg_GENERATOR)
        set(arg_GENERATOR ${PROJECT_SOURCE_DIR}/tests/fuzz/fuzz_no_generator.c)
    endif()
    set(corpus)
    if(arg_CORPUS)
        set(corpus ${PROJECT_SOURCE_DIR}/tests/fuzz/corpus/${arg_CORPUS})
    endif()
    kvasir_test(${target}
        SOURCES ${arg_SOURCES} ${arg_GENERATOR} ${PROJECT_SOURCE_DIR}/tests/fuzz/fuzz_driver.c
        LINKS ${arg_LINKS} LABELS fuzz ARGS ${arg_RUNS} ${corpus} TIMEOUT ${arg_TIMEOUT})
    if(KVASIR_FUZZ)
        add_executable(${target}_guided ${arg_SOURCES})
        kvasir_target_common(${target}_guided)
        target_link_libraries(${target}_guided PRIVATE ${arg_LINKS} base)
        target_link_options(${target}_guided PRIVATE -fsanitize=fuzzer)
        set_target_properties(${target}_guided PROPERTIES
            RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/tests)
    endif()
endfunction()

# ---- report ------------------------------------------------------------------------------------

function(kvasir_report)
    set(sanitize "${KVASIR_SANITIZE}")
    if(NOT sanitize)
        set(sanitize "none")
    endif()
    message(STATUS "kvasir ${PROJECT_VERSION}: ${CMAKE_BUILD_TYPE}, ${CMAKE_C_COMPILER_ID} "
                   "${CMAKE_C_COMPILER_VERSION}, sanitizers: ${sanitize}, cuda: ${KVASIR_WITH_CUDA}, "
                   "tests: ${KVASIR_TESTS}")
    message(STATUS "libraries: MPI ${MPI_C_VERSION}, grpc ${GRPC_VERSION}, protobuf-c "
                   "${PROTOBUF_C_VERSION}, jansson ${JANSSON_VERSION}, utf8proc ${UTF8PROC_VERSION}, "
                   "microhttpd ${MICROHTTPD_VERSION}, hwloc ${HWLOC_VERSION}")
endfunction()
