# shellcheck shell=bash
# What the tests need and how it comes here: sourced by test.sh, Debian only.
# A tool that is there is not touched; a machine that has all is left alone.

cache=/var/cache/registrator-test
: "${tmp:?}"                            # the folder for temporary files

# Prints the Debian packages of what is missing, by the tool or the file.
missing_packages() {
    local rt
    has() { command -v "$1" >/dev/null; }
    has make                              || echo make
    has gcc                               || echo gcc
    [ -e /usr/include/stdio.h ]           || echo libc6-dev
    has musl-gcc                          || echo musl-tools
    has clang                             || echo clang
    has strace                            || echo strace
    has shellcheck                        || echo shellcheck
    has dockerd && has docker             || echo docker.io
    has podman                            || echo podman
    has runc                              || echo runc
    has iptables                          || echo iptables
    has ip                                || echo iproute2
    static_busybox                        || echo busybox-static
    has python3                           || echo python3
    has curl                              || echo curl
    has jq                                || echo jq
    has valgrind                          || echo valgrind
    has openssl                           || echo openssl
    has xz                                || echo xz-utils
    has dig                               || echo bind9-dnsutils
    has debootstrap                       || echo debootstrap
    has docker-compose || has_plugin      || echo docker-compose
    has systemd-analyze                   || echo systemd
    [ -e /etc/ssl/certs/ca-certificates.crt ] || echo ca-certificates
    # The fuzzer's library belongs to the clang that is here.
    if has clang; then
        rt=$(clang -print-file-name="libclang_rt.fuzzer-$(uname -m).a")
        [ -e "$rt" ] || echo "libclang-rt-$(clang -dumpversion | cut -d. -f1)-dev"
    fi
}

static_busybox() {
    command -v busybox >/dev/null &&
        ldd "$(command -v busybox)" 2>&1 | grep -q 'not a dynamic'
}

has_plugin() {
    docker compose version >/dev/null 2>&1
}

as_root() {
    [ "$(id -u)" = 0 ] || die "$1 as root"
}

# Twice, for the fuzzer's library can be named only when clang is there.
install_missing() {
    local wanted
    for _ in 1 2; do
        wanted=$(missing_packages | sort -u | tr '\n' ' ')
        [ -n "${wanted// /}" ] || return 0
        # shellcheck disable=SC2086  # a list of names
        install_packages $wanted
    done
}

install_packages() {
    [ $# -gt 0 ] || return 0
    echo "# installing $*"
    as_root "installing packages works only"
    update_lists
    DEBIAN_FRONTEND=noninteractive apt-get install -q -y \
        --no-install-recommends "$@" >"$tmp/apt.log" 2>&1 </dev/null ||
        { tail -n 20 "$tmp/apt.log"; die "cannot install $*"; }
    hash -r
}

update_lists() {
    [ -z "${lists_are_new-}" ] || return 0
    apt-get update -q >"$tmp/apt.log" 2>&1 </dev/null ||
        { tail -n 20 "$tmp/apt.log"; die "apt-get update failed"; }
    lists_are_new=1
}

# Puts a Consul agent on PATH. Debian 12 has no package of it, Debian 11 has:
# unpacked into a cache folder and installed nowhere.
find_consul() {
    command -v consul >/dev/null && return 0
    PATH=$cache:$PATH
    command -v consul >/dev/null && return 0
    echo "# fetching consul from Debian 11"
    fetch deb bullseye download consul
    dpkg -x "$tmp"/fetch/consul_*.deb "$tmp/fetch/tree"
    install -D "$tmp/fetch/tree/usr/bin/consul" "$cache/consul"
    hash -r
}

# Puts the cross compilers of the Makefile on PATH.  gcc and qemu are packages
# of this machine; the C library is one of the other machine, and apt would
# take it only where that architecture was added: unpacked into the cache.
find_cross() {
    local arch machine missing=() dir=$cache/cross
    for machine in aarch64-linux-gnu arm-linux-gnueabihf; do
        command -v $machine-gcc >/dev/null || missing+=("gcc-$machine")
    done
    command -v qemu-arm-static >/dev/null || missing+=(qemu-user-static)
    install_packages "${missing[@]}"
    for arch in arm64:aarch64-linux-musl armhf:arm-linux-musleabihf; do
        machine=${arch#*:} arch=${arch%:*}
        command -v "$machine-gcc" >/dev/null && continue
        [ ! -e "$dir/usr/bin/$machine-gcc" ] || continue
        echo "# fetching the C library of $arch"
        arch=$arch fetch deb bookworm download musl-dev
        dpkg -x "$tmp"/fetch/musl-dev_*.deb "$tmp/fetch/tree"
        # Two files say where it is.  The compiler comes last: then all is.
        (cd "$tmp/fetch/tree/usr" && mkdir -p "$dir/usr/bin" &&
            sed -i "s#/usr/#$dir/usr/#g" "lib/$machine/musl-gcc.specs" \
                "bin/$machine-gcc" && cp -R include lib "$dir/usr" &&
            cp "bin/$machine-gcc" "$dir/usr/bin") ||
            die "no compiler for $arch"
    done
    PATH=$dir/usr/bin:$PATH
}

# Puts the source of BearSSL where the Makefile looks for it.
find_bearssl() {
    compgen -G "bearssl-0.6*/inc/bearssl.h" >/dev/null && return 0
    if [ ! -e "$cache/bearssl.tar.xz" ]; then
        echo "# fetching the source of BearSSL"
        fetch deb-src bookworm source --download-only bearssl
        install -D -m 644 "$tmp"/fetch/bearssl_*.orig.tar.xz \
            "$cache/bearssl.tar.xz"
    fi
    tar xf "$cache/bearssl.tar.xz" || die "no source of BearSSL"
}

# fetch deb|deb-src SUITE COMMAND...: apt-get for something of another suite,
# into $tmp/fetch, from the mirror this machine uses anyhow and beside its own
# lists; apt checks the signatures.  With arch=ARCH before it, of another
# architecture.
fetch() {
    local mirror dir=$tmp/fetch kind=$1 suite=$2
    local arch=${arch:-$(dpkg --print-architecture)}
    local keys=/usr/share/keyrings/debian-archive-keyring.gpg
    shift 2
    mirror=$(debian_mirror)
    [ -n "$mirror" ] || { update_lists; mirror=$(debian_mirror); }
    rm -rf "$dir"
    mkdir -p "$dir/lists/partial" "$dir/cache/archives/partial" "$dir/tree"
    echo "$kind [signed-by=$keys] $mirror $suite main" >"$dir/sources.list"
    local apt=(apt-get -q
        -o "APT::Architecture=$arch" -o "APT::Architectures::=$arch"
        -o "Dir::Etc::sourcelist=$dir/sources.list"
        -o "Dir::Etc::sourceparts=/dev/null"
        -o "Dir::State::lists=$dir/lists"
        -o "Dir::Cache=$dir/cache"
        -o "APT::Sandbox::User=root")
    { "${apt[@]}" update && (cd "$dir" && "${apt[@]}" "$@"); } \
        >"$tmp/apt.log" 2>&1 ||
        { tail -n 20 "$tmp/apt.log"; die "apt-get $* failed"; }
}

debian_mirror() {
    # shellcheck disable=SC2016         # apt's own names
    apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' \
        'Label: Debian' 2>/dev/null | head -n 1
}
