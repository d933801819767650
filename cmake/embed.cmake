# Makes a C file out of any file: its bytes as the array NAME, and how many there are as NAME_len.
# HEADER declares both.
file(READ ${IN} bytes HEX)
string(LENGTH "${bytes}" digits)
math(EXPR count "${digits} / 2")
string(REGEX REPLACE "(................................)" "\\1\n" bytes "${bytes}")
string(REGEX REPLACE "([0-9a-f][0-9a-f])" "0x\\1," bytes "${bytes}")
file(WRITE ${OUT} "#include \"${HEADER}\"\n\nconst uint8_t ${NAME}[] = {\n${bytes}};\nconst size_t ${NAME}_len = ${count};\n")
