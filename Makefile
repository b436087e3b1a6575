# registrator: see README.md.  `make CC=cc` builds with the system's own C
# library, for development; what is shipped is static, by musl.

CC = musl-gcc
CFLAGS = -Os
PREFIX = /usr/local
READELF = readelf
OUT = registrator.strict

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

# Warnings are errors, with any compiler: make strict CC=clang OUT=/tmp/x
GCC_WARN = $(shell $(CC) --version | grep -q -i clang || echo -Wlogical-op \
	-Wduplicated-cond -Wduplicated-branches -Wjump-misses-init)
strict:
	$(CC) $(STD) $(WARN) $(GCC_WARN) -Werror -O2 -o $(OUT) registrator.c

test:
	./test.sh

demo:
	./test.sh demo

install: registrator
	install -D -m 755 registrator $(DESTDIR)$(PREFIX)/bin/registrator

clean:
	rm -f registrator

.PHONY: all strict test demo install clean
