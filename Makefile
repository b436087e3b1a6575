# registrator: see README.md.  `make ARCH=arm64` builds for another machine
# than this one, into a file named after it.  `make CC=cc BIN=NAME` builds
# with the system's own C library, for development; musl is what is shipped.

# The compilers of Debian's musl-tools (for this machine) and musl-dev.
CC_ = musl-gcc
CC_amd64 = x86_64-linux-musl-gcc
CC_arm64 = aarch64-linux-musl-gcc
CC_armhf = arm-linux-musleabihf-gcc
ARCH =
CC = $(or $(CC_$(ARCH)),$(error ARCH is amd64, arm64 or armhf))
# An ar of another machine could not index the archive.
AR = $(shell $(CC) -print-prog-name=ar)
BIN = registrator$(addprefix -,$(ARCH))
CFLAGS = -Os
PREFIX = /usr/local
READELF = readelf

STD = -std=c99 -pedantic
WARN = -Wall -Wextra -Wconversion -Wshadow -Wstrict-prototypes \
	-Wmissing-prototypes -Wold-style-definition -Wpointer-arith \
	-Wcast-qual -Wwrite-strings -Wundef -Wformat=2 -Wvla -Wswitch-enum \
	-Wimplicit-fallthrough -Wnull-dereference
# Static and not position-independent, so that constant tables are read-only;
# musl-gcc -static-pie would silently make a dynamic program.
CODE = -fstack-protector-strong -fno-strict-overflow -ffunction-sections \
	-fdata-sections -fno-asynchronous-unwind-tables -fno-unwind-tables \
	-fno-pie $(NO_CET) $(CODE_$(ARCH))
# musl has no landing pads for x86's indirect branch tracking.
NO_CET = $(shell $(CC) -fcf-protection=none -E -x c /dev/null >/dev/null \
	2>&1 && echo -fcf-protection=none)
# All of it is within 1 MB, else ld says so: 4 kB less.
CODE_arm64 = -mcmodel=tiny
# With relro, arm64 would fill the file up to a page of 64 kB.  The segments
# stay that far apart in memory, for kernels whose pages are so large; with
# max-page-size=4096 it would not run there.
LINK = -static -no-pie -s -Wl,--gc-sections -Wl,-z,noexecstack \
	-Wl,-z,norelro -Wl,-z,noseparate-code \
	-Wl,-z,common-page-size=64 -Wl,--build-id=none

# BearSSL 0.6 from Debian's source package, where `apt-get source bearssl`
# puts it.  Our own build is 18 kB smaller than the archive of libbearssl-dev,
# has a clock of 64 bits on 32-bit machines, and needs no stand-ins for the
# checked functions of glibc that the archive was compiled with.
BEARSSL = $(firstword $(wildcard bearssl-0.6*) bearssl-0.6)
# AES is that in portable C alone: the instructions that x86 has for it would
# be 4 kB, and save 14 ms of processor time a megabyte.
LIB_FLAGS = -Os $(CODE) -DBR_AES_X86NI=0
LIB = $(BEARSSL)/build-$(notdir $(firstword $(CC)))/libbearssl.a

all: $(BIN)

$(BIN): registrator.c Makefile $(LIB)
	$(CC) $(STD) $(WARN) $(CODE) $(CFLAGS) -isystem $(BEARSSL)/inc \
		-o $@ registrator.c $(LIB) $(LINK)
	@! $(READELF) -lW $@ | grep -E 'INTERP|DYNAMIC|GNU_STACK.* RWE' || \
		{ echo '$@ is not static, or has an executable stack' >&2; \
		rm -f $@; exit 1; }

$(LIB): Makefile | $(BEARSSL)/inc/bearssl.h
	+@echo "BearSSL, for $(CC): $@"; rm -rf $(@D); log=$$(mktemp) && \
	$(MAKE) -j2 -C $(BEARSSL) lib CC='$(CC)' AR='$(AR)' BUILD=$(patsubst \
		$(BEARSSL)/%/libbearssl.a,%,$@) CFLAGS='$(LIB_FLAGS)' \
		>"$$log" 2>&1 || { cat "$$log"; rm -f "$$log" $@; exit 1; }; \
	rm -f "$$log"

bearssl: $(LIB)

$(BEARSSL)/inc/bearssl.h:
	@echo 'The source of BearSSL is missing.  In this folder, say' \
		'"apt-get source bearssl" (with deb-src in its sources;' \
		'dpkg-dev unpacks it), or name it: make BEARSSL=FOLDER' >&2; \
	exit 1

test:
	./test.sh

demo:
	./test.sh demo

# Inputs that fail are left here as fuzz-NAME-...
FUZZ_SECONDS = 60
FUZZERS = json split http docker services url options consul text \
	pem der chain key
FUZZ_LIB = $(BEARSSL)/build-clang/libbearssl.a
fuzz:
	@$(MAKE) -s CC=clang bearssl
	@dir=$$(mktemp -d) && trap 'rm -rf "$$dir"' EXIT && \
	clang -std=c99 -g -O1 -fsanitize=fuzzer,address,undefined \
		-fno-sanitize-recover=all -fno-pie -no-pie \
		-isystem $(BEARSSL)/inc -o "$$dir/fuzz" \
		tests/fuzz.c $(FUZZ_LIB) && \
	for name in $(FUZZERS); do \
		mkdir "$$dir/$$name" && \
		FUZZ=$$name "$$dir/fuzz" -max_total_time=$(FUZZ_SECONDS) \
			-dict=tests/corpus/dict -timeout=10 \
			-artifact_prefix=fuzz-$$name- "$$dir/$$name" \
			"tests/corpus/$$name" >"$$dir/log" 2>&1 || \
			{ tail -n 40 "$$dir/log"; exit 1; }; \
		echo "ok fuzz $$name"; \
	done

# Random life against random faults, seed after seed until it is told to stop.
MODEL_SEEDS = $$(date +%s)-
MODEL_JOBS = 8
model:
	@$(MAKE) -s CC=cc bearssl
	@dir=$$(mktemp -d) && trap 'rm -rf "$$dir"' EXIT && \
	cc -std=c99 -g -O1 -fsanitize=address,undefined \
		-fno-sanitize-recover=all -DHASTE=10 -fno-pie -no-pie \
		-isystem $(BEARSSL)/inc -o "$$dir/registrator" \
		registrator.c $(BEARSSL)/build-cc/libbearssl.a && \
	python3 tests/model.py "$$dir/registrator" -j $(MODEL_JOBS) \
		--seeds $(MODEL_SEEDS)

# What takes longer than ./test.sh should: everything once more under
# sanitizers, with reads and writes of one byte, the unit tests in valgrind.
torture:
	./test.sh valgrind asan tiny

SOAK_SECONDS = 300
soak: registrator
	python3 tests/hostile.py --soak 20000 ./registrator
	python3 tests/faults.py --soak $(SOAK_SECONDS) ./registrator

# Figures: BINARIES are measured side by side.  Every byte of the binary.
BINARIES = ./registrator
bench: registrator
	python3 tests/bench.py $(BINARIES)

size: registrator
	python3 tests/size.py

install: $(BIN)
	install -D -m 755 $(BIN) $(DESTDIR)$(PREFIX)/bin/registrator

clean:
	rm -rf registrator registrator-a* $(BEARSSL)/build-*

.PHONY: all bearssl test demo fuzz model torture soak bench size install clean
