# Thin wrappers; the build itself is CMakeLists.txt and its presets.
#
#   make          set-up and a release build: build/release/nibble
#   make test     all tests, with a closing line "N passed, N failed"
#   make demo     one real model: quantize, measure, report, chat
BUILD := build/release

.PHONY: all setup build program test demo bench format install clean

all: build

setup:
	@scripts/setup.sh

build: setup
	@cmake --preset release --log-level=WARNING
	@cmake --build --preset release

# The demo needs the program alone, and waits for nothing else.
program: setup
	@cmake --preset release --log-level=WARNING
	@cmake --build --preset release --target nibble

test: build
	@scripts/test.sh $(BUILD)

demo: program
	@scripts/demo.sh $(BUILD)/nibble

bench: build
	@scripts/bench.sh $(BUILD)

format:
	@scripts/check_format.sh --fix

# make install PREFIX=/usr/local DESTDIR=
install: build
	@DESTDIR="$(DESTDIR)" cmake --install $(BUILD) --prefix "$(or $(PREFIX),/usr/local)"

clean:
	rm -rf build
