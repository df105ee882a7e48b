# Run at build time (cmake -P): writes a C file with the bytes of INPUT as SYMBOL and SYMBOL_bytes.
file(READ ${INPUT} hex HEX)
string(REGEX REPLACE "([0-9a-f][0-9a-f])" "0x\\1," bytes "${hex}")
string(REGEX REPLACE "(................................................................................)"
       "\\1\n    " lines "${bytes}")
file(WRITE ${OUTPUT}
    "#include \"${HEADER}\"\n\n"
    "const uint8_t ${SYMBOL}[] = {\n    ${lines}\n};\n"
    "const size_t ${SYMBOL}_bytes = sizeof ${SYMBOL};\n")
