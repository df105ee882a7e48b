# Run at build time (cmake -P): writes version.c, and only when its content changes.
execute_process(COMMAND git -C ${SOURCE_DIR} describe --always --dirty --abbrev=7 --exclude=*
                OUTPUT_VARIABLE hash OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET RESULT_VARIABLE failed)
set(VERSION_STRING "${VERSION_NUMBER}")
if(NOT failed)
    string(APPEND VERSION_STRING " (${hash})")
endif()
configure_file(${SOURCE_DIR}/base/version.c.in ${OUTPUT} @ONLY)
