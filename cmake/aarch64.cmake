# Cross-compilation for 64-bit ARM, and its tests under emulation: the preset `aarch64`.
#
#   scripts/aarch64_root.sh build/aarch64-root     the libraries, once
#   cmake --preset aarch64 && cmake --build --preset aarch64
#   ctest --test-dir build/aarch64 -R '^kernel/'
#
# -DCMAKE_C_COMPILER=clang works too: the target and the sysroot of the GNU cross compiler are
# passed to it.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(NIBBLE_AARCH64_ROOT "${CMAKE_CURRENT_LIST_DIR}/../build/aarch64-root" CACHE PATH
    "where scripts/aarch64_root.sh unpacked the libraries")
# Try-compile projects read this file as well, and must find the same libraries.
list(APPEND CMAKE_TRY_COMPILE_PLATFORM_VARIABLES NIBBLE_AARCH64_ROOT)

if(NOT CMAKE_C_COMPILER)
  set(CMAKE_C_COMPILER aarch64-linux-gnu-gcc)
endif()
set(CMAKE_C_COMPILER_TARGET aarch64-linux-gnu)
# libcmocka is a shared library, whose dependencies the linker looks up.
get_filename_component(root "${NIBBLE_AARCH64_ROOT}" ABSOLUTE)
set(CMAKE_EXE_LINKER_FLAGS_INIT "-Wl,-rpath-link,${root}/usr/lib/aarch64-linux-gnu")

# -cpu max has every extension, the dot products among them.
find_program(NIBBLE_QEMU NAMES qemu-aarch64 qemu-aarch64-static)
if(NIBBLE_QEMU)
  set(CMAKE_CROSSCOMPILING_EMULATOR "${NIBBLE_QEMU};-cpu;max;-L;/usr/aarch64-linux-gnu")
endif()

# pkg-config must see the target's libraries and no others.
set(ENV{PKG_CONFIG_LIBDIR} "${root}/usr/lib/aarch64-linux-gnu/pkgconfig:${root}/usr/share/pkgconfig")
set(ENV{PKG_CONFIG_SYSROOT_DIR} "${root}")
set(CMAKE_FIND_ROOT_PATH "${root};/usr/aarch64-linux-gnu")
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY BOTH)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE BOTH)
