# registrator: see README.md.  `make CC=cc` builds with the system's own C
# library, for development; what is shipped is static, by musl.

CC = musl-gcc
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
	-fdata-sections -fno-asynchronous-unwind-tables -fno-pie
LINK = -static -no-pie -s -Wl,--gc-sections -Wl,-z,noexecstack \
	-Wl,-z,norelro -Wl,-z,noseparate-code -Wl,--build-id=none

all: registrator

registrator: registrator.c Makefile
	$(CC) $(STD) $(WARN) $(CODE) $(CFLAGS) -o $@ registrator.c $(LINK)
	@! $(READELF) -lW $@ | grep -E 'INTERP|DYNAMIC|GNU_STACK.* RWE' || \
		{ echo '$@ is not static, or has an executable stack' >&2; \
		rm -f $@; exit 1; }

test:
	./test.sh

demo:
	./test.sh demo

# Inputs that fail are left here as fuzz-NAME-...
FUZZ_SECONDS = 60
FUZZERS = json split http docker services url consul text
fuzz:
	@dir=$$(mktemp -d) && trap 'rm -rf "$$dir"' EXIT && \
	clang -std=c99 -g -O1 -fsanitize=fuzzer,address,undefined \
		-fno-sanitize-recover=all -o "$$dir/fuzz" tests/fuzz.c && \
	for name in $(FUZZERS); do \
		mkdir "$$dir/$$name" && \
		FUZZ=$$name "$$dir/fuzz" -max_total_time=$(FUZZ_SECONDS) \
			-dict=tests/corpus/dict -timeout=10 \
			-artifact_prefix=fuzz-$$name- "$$dir/$$name" \
			"tests/corpus/$$name" >"$$dir/log" 2>&1 || \
			{ tail -n 40 "$$dir/log"; exit 1; }; \
		echo "ok fuzz $$name"; \
	done

install: registrator
	install -D -m 755 registrator $(DESTDIR)$(PREFIX)/bin/registrator

clean:
	rm -f registrator

.PHONY: all test demo fuzz install clean
