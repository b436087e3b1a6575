#!/bin/bash
# Runs every test of registrator and ends with "N passed, N failed".
#
#     ./test.sh            all suites, two at a time
#     ./test.sh SUITE...   only these: build lint unit fuzz parity model kv
#                          peers hostile regress author tls e2e faults podman
#                          power hosts image examples place arch
#     ./test.sh SUITE:WORD...     of a suite the cases that have this word
#     ./test.sh demo       a walk to watch: a container comes and goes
#     ./test.sh demo 3     the same with three hosts and three Consul servers
#
# On Debian, as root, it installs what is missing.  A suite is a program that
# prints a line a case, "ok NAME" or "not ok NAME: why", with details below
# that begin with two blanks or "#".

set -u
cd "$(dirname "$0")" || exit 1
unset MAKEFLAGS MFLAGS MAKELEVEL        # "make test" may have called us
export LC_ALL=C.UTF-8
suites=(build lint unit fuzz parity model kv peers hostile regress tls e2e
    podman power)
beside=(faults author hosts image examples place arch)     # while the others run
binary=${REGISTRATOR:-./registrator}    # another build, to be tested instead
passed=0 failed=0 child='' child_signal=TERM second=''
tmp=$(mktemp -d) || exit 1

die() {
    echo "test.sh: $*" >&2
    exit 1
}

# What runs ends first: it takes away what it started.
cleanup() {
    exec 2>/dev/null
    [ -z "$second" ] || kill "$second"
    end "$child" "$child_signal"
    end "$second" 0
    find /sys/fs/cgroup -depth -type d -path '*/registrator-demo*' \
        -exec rmdir {} +
    rm -rf "$tmp"
}

# end PID SIGNAL: waits a while, then has no patience.
end() {
    [ -n "$1" ] || return
    kill -"$2" "$1"
    for _ in {1..100}; do
        kill -0 "$1" || return
        sleep 0.1
    done
    kill -KILL "$1"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# shellcheck source=tests/setup.sh
. tests/setup.sh

# ---- the suites: each runs in a subshell of its own, the word is its $1

# try NAME COMMAND...: a case that is a command; its output is the detail.
try() {
    local name=$1
    shift
    [[ $name == *"$word"* ]] || return 0
    if "$@" >"$tmp/try" 2>&1; then
        echo "ok $name"
    else
        echo "not ok $name: $1 ended with $?"
        tail -n 40 "$tmp/try" | sed 's/^/  /'
    fi
}

suite_build() {
    local cc level more
    try "build make" make
    try "build size, as in the README" python3 tests/readme.py weigh
    for cc in musl-gcc gcc clang; do
        more="-Wlogical-op -Wduplicated-cond -Wduplicated-branches"
        more="$more -Wjump-misses-init"
        [ "$cc" != clang ] || more=-Wno-unused-command-line-argument
        for level in -O0 -O2 -Os; do
            rm -f "$tmp/strict"
            try "build $cc $level -Werror" make CC="$cc" BIN="$tmp/strict" \
                CFLAGS="$level -Werror $more"
        done
    done
}

suite_lint() {
    try "lint gate" awk -f tests/gate.awk registrator.c
    try "lint layers" awk -f tests/layers.awk registrator.c registrator.c
    [[ "lint fields" != *"$word"* ]] || python3 tests/fields.py
    try "lint figures of the README" python3 tests/readme.py check
    try "lint shellcheck" shellcheck -x test.sh .ci/run tests/*.sh
}

sanitizers="-O1 -fsanitize=address,undefined -fno-sanitize-recover=all"

# compile OUTPUT SOURCE FLAG...: with the C library of this system.
compile() {
    local out=$1 from=$2 source
    shift 2
    source=$(dirname bearssl-0.6*/inc)
    { make -s CC=cc bearssl &&
        cc -std=c99 -g "$@" -fno-pie -no-pie -isystem "$source/inc" \
            -o "$out" "$from" "$source/build-cc/libbearssl.a"; } \
        >"$tmp/cc" 2>&1 || { sed 's/^/  /' "$tmp/cc"; return 1; }
}

suite_unit() {
    # shellcheck disable=SC2086         # a list of flags
    compile "$tmp/unit" tests/unit.c $sanitizers || return 1
    exec "$tmp/unit" "$@"
}

suite_valgrind() {                      # what sanitizers do not see
    compile "$tmp/unit" tests/unit.c -O1 || return 1
    valgrind -q --error-exitcode=9 --leak-check=full \
        --errors-for-leak-kinds=definite "$tmp/unit" 2>&1 |
        sed 's/^\(ok\|not ok\) unit /\1 valgrind /'
    return "${PIPESTATUS[0]}"
}

# The whole, in builds that are slower and see more: make torture.
suite_asan() {
    # shellcheck disable=SC2086
    compile "$tmp/asan" registrator.c $sanitizers || return 1
    # What is freed is kept for a while, to be watched: 256 MB, if not told.
    ASAN_OPTIONS=quarantine_size_mb=16 PEERS_CPU_S=20 HOSTILE_MEMORY=50 \
        torture asan
}

suite_tiny() {                          # every read and write moves a byte
    compile "$tmp/tiny" registrator.c -Os -DIO_MAX=1 ||
        return 1
    # Endless answers and floods take too long to be read so.
    PEERS_CPU_S=90 torture tiny '^(?!endless|flood|IDs|turns|start|rows|real)'
}

# torture NAME [CASES]: all suites with the build of that name; of hostile
# and author the cases that this regular expression finds.
torture() {
    local name status=0 words
    for name in parity peers hostile ages regress author tls e2e faults podman; do
        words=("$tmp/$1")
        case $name in
            parity) words=(check "$tmp/$1" tests/parity.json) ;;
            hostile | author) words+=("${@:2}") ;;
            # Not under strace, which a search for leaks would need itself;
            # nor, byte by byte, what is of many megabytes.
            regress) words+=("$([ "$1" = asan ] && echo '^(?!E7)' ||
                echo '^[^B7]')") ;;
        esac
        python3 "tests/$name.py" "${words[@]}" 2>&1 |
            sed "s/^\(ok\|not ok\) /\1 $1 /"
        [ "${PIPESTATUS[0]}" = 0 ] || status=1
    done
    return "$status"
}

suite_fuzz() {                          # a taste: make fuzz is the meal
    exec make -s fuzz FUZZ_SECONDS=2
}

suite_parity() {
    exec python3 tests/parity.py check "$binary" tests/parity.json
}

suite_model() {                         # a taste, too: make model
    # shellcheck disable=SC2086
    compile "$tmp/model" registrator.c $sanitizers -DHASTE=10 || return 1
    exec python3 tests/model.py "$tmp/model" --seeds 1-100
}

suite_kv() {                            # another row of the registry table
    # shellcheck disable=SC2086
    compile "$tmp/kv" tests/kv.c $sanitizers -DHASTE=10 || return 1
    PEERS_CPU_S=5 exec python3 tests/kv.py "$tmp/kv" "$@"
}

suite_options() {                       # a part of peers
    exec python3 tests/peers.py "$binary" '^option'
}

# What has hundreds of lists tried again, a second after each, is for a build
# whose seconds are short; of another binary there is none.
suite_hostile() {
    local status=0 hasty=$binary many='cut|messages|JSON'
    if [ -z "${REGISTRATOR-}" ] && [ -z "$word" ]; then
        compile "$tmp/hasty" registrator.c -Os -DHASTE=10 || return 1
        hasty=$tmp/hasty
    fi
    if [ -n "$word" ]; then             # which one of the two may have
        python3 tests/ages.py "$binary" "$@"
        python3 tests/hostile.py "$binary" "$@"
        return
    fi
    python3 tests/ages.py "$binary" || status=1
    python3 tests/hostile.py "$binary" "^(?!$many)" || status=1
    python3 tests/hostile.py "$hasty" "^($many)" || status=1
    return "$status"
}

suite_tls() {
    local status=0
    [ -n "$word" ] || python3 tests/chains.py || status=1
    python3 tests/tls.py "$binary" "$@" && return "$status"
}

# A script each; three minutes of image are Debian's.
for name in peers regress author e2e faults podman power hosts image \
    examples place; do
    eval "suite_$name() { exec python3 tests/$name.py \"\$binary\" \"\$@\"; }"
done

# Other machines under qemu, and the system's own C library.
suite_arch() {
    local arch binaries=() word=''      # all are built
    local -A qemu=([arm64]=qemu-aarch64-static [armhf]=qemu-arm-static)
    for arch in arm64 armhf; do
        rm -f "registrator-$arch"
        try "arch $arch make" make ARCH=$arch CFLAGS="-Os -Werror"
        try "arch $arch static, small" is_small "registrator-$arch"
        try "arch $arch -version" \
            "${qemu[$arch]}" "registrator-$arch" -version
        binaries+=("$arch=registrator-$arch")
    done
    # ld warns of getaddrinfo, which a static glibc takes from the system.
    try "arch cc make" make CC=cc BIN="$tmp/registrator-cc"
    try "arch cc -version" "$tmp/registrator-cc" -version
    exec python3 tests/arch.py registrator "${binaries[@]}" \
        cc="$tmp/registrator-cc" "$@"
}

# No interpreter, nothing dynamic, under 200,000 bytes.
is_small() {
    ! readelf -lW "$1" | grep -E 'INTERP|DYNAMIC' &&
        [ "$(stat -c %s "$1")" -lt 200000 ]
}

# ---- running and counting

build() {
    make >"$tmp/make" 2>&1 || { cat "$tmp/make"; die "make failed"; }
}

# Without an engine on this machine: in namespaces, where the kernel ends
# whatever the demo started.
demo() {
    local command=(bash tests/demo.sh "$tmp")
    if ! docker info >/dev/null 2>&1; then
        as_root "the demo starts an engine"
        # shellcheck disable=SC2016
        command=(unshare -n -m -p -f --kill-child --mount-proc
            sh -c '"$@" & wait $!' sh "${command[@]}")
        child_signal=KILL
    fi
    "${command[@]}" </dev/null &
    child=$!
    wait "$child"
}

demo_3() {
    as_root "the demo starts engines"
    python3 tests/hosts.py --show ./registrator </dev/null &
    child=$!
    wait "$child"
}

run_suite() {
    local name=${1%%:*} word='' line good=0 bad=0 status
    [ "$name" = "$1" ] || word=${1#*:}
    echo "# ---- $1"
    exec 3< <("suite_$name" ${word:+"$word"} 2>&1 </dev/null)
    child=$!
    while IFS= read -r line <&3 || [ -n "$line" ]; do
        case $line in
            "ok "*) good=$((good + 1)) ;;
            "not ok "*) bad=$((bad + 1)) ;;
            *" passed, "*" failed"*) line="# $line" ;;
        esac
        printf '%s\n' "$line"
    done
    wait "$child"
    status=$?
    child=
    exec 3<&-
    if [ $((good + bad)) = 0 ]; then
        echo "not ok $name: no case was run, status $status"
        bad=1
    elif [ "$status" != 0 ] && [ "$bad" = 0 ]; then
        echo "not ok $name: ended with $status"
        bad=1
    fi
    passed=$((passed + good)) failed=$((failed + bad))
}

# The other half of all suites, by another test.sh, told when it is done.
run_beside() {
    ./test.sh "${beside[@]}" >"$tmp/beside" 2>&1 </dev/null &
    second=$!
}

count_beside() {
    local good bad
    wait "$second"
    second=
    sed '$d' "$tmp/beside"
    read -r good _ bad _ < <(tail -n 1 "$tmp/beside")
    if [[ $good =~ ^[0-9]+$ && $bad =~ ^[0-9]+$ ]]; then
        passed=$((passed + good)) failed=$((failed + bad))
    else
        tail -n 1 "$tmp/beside"
        echo "not ok ${beside[*]}: ended early"
        failed=$((failed + 1))
    fi
}

wanted=("$@")
[ $# -gt 0 ] || wanted=("${suites[@]}")
walk=
case ${wanted[*]} in
    demo) walk=demo ;;
    "demo 3") walk=demo_3 ;;
    "demo "*) die "there are two walks: demo, and demo 3" ;;
    *)
        for name in "${wanted[@]}"; do
            declare -F "suite_${name%%:*}" >/dev/null ||
                die "no suite $name; there are: ${suites[*]} ${beside[*]} demo"
        done ;;
esac

install_missing
find_consul
find_bearssl
[[ $# -gt 0 && " $* " != *" arch"* ]] || find_cross
if [ -n "$walk" ]; then
    build
    "$walk"
    exit
fi
build
[ $# -gt 0 ] || run_beside
for name in "${wanted[@]}"; do
    run_suite "$name"
done
[ -z "$second" ] || count_beside
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
