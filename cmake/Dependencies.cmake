# Every library the project uses, found once. ops/setup installs the packages they come from.

find_package(PkgConfig REQUIRED)
find_package(Threads REQUIRED)
find_package(MPI REQUIRED COMPONENTS C)
find_package(ZLIB REQUIRED)

pkg_check_modules(PROTOBUF_C REQUIRED IMPORTED_TARGET libprotobuf-c>=1.4)
pkg_check_modules(JANSSON REQUIRED IMPORTED_TARGET jansson>=2.13)
pkg_check_modules(UTF8PROC REQUIRED IMPORTED_TARGET libutf8proc>=2.6)
pkg_check_modules(MICROHTTPD REQUIRED IMPORTED_TARGET libmicrohttpd>=0.9.70)
pkg_check_modules(HWLOC REQUIRED IMPORTED_TARGET hwloc>=2.1)

# grpc.pc lists some eighty libraries; the two whose functions are called are enough.
pkg_check_modules(GRPC REQUIRED grpc>=29)
find_library(GRPC_LIBRARY grpc REQUIRED HINTS ${GRPC_LIBRARY_DIRS})
find_library(GPR_LIBRARY gpr REQUIRED HINTS ${GRPC_LIBRARY_DIRS})
mark_as_advanced(GRPC_LIBRARY GPR_LIBRARY)
add_library(PkgConfig::GRPC INTERFACE IMPORTED GLOBAL)
target_link_libraries(PkgConfig::GRPC INTERFACE ${GRPC_LIBRARY} ${GPR_LIBRARY} Threads::Threads)
target_include_directories(PkgConfig::GRPC INTERFACE ${GRPC_INCLUDE_DIRS})

if(KVASIR_TESTS)
    pkg_check_modules(CMOCKA REQUIRED IMPORTED_TARGET cmocka>=1.1.5)
endif()
