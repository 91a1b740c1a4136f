#!/bin/sh
# Prepares Debian 12's PostgreSQL 15 with PL/Python and pgvector, for the tests. Quick where it stands already.
# bookworm has no pgvector and trixie's binary needs a newer libc, so it is built from trixie's source package.
set -eu

packages="postgresql-15 postgresql-plpython3-15 postgresql-server-dev-15 gcc make dpkg-dev"
extension=/usr/share/postgresql/15/extension

missing=""
for package in $packages; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing="$missing $package"
done
[ -e $extension/vector.control ] || missing="$missing pgvector"
[ -z "$missing" ] && exit 0
if [ "$(id -u)" != 0 ]; then
    echo "missing:$missing; run as root: $0" >&2
    exit 1
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export DEBIAN_FRONTEND=noninteractive

if [ "$missing" != " pgvector" ]; then
    # The tests run servers of their own; the package would make and start one.
    if [ ! -e /etc/postgresql-common/createcluster.conf ]; then
        mkdir -p /etc/postgresql-common
        echo 'create_main_cluster = false' > /etc/postgresql-common/createcluster.conf
    fi
    apt-get -qq update
    # shellcheck disable=SC2086
    apt-get -qq install --no-install-recommends -o Dpkg::Use-Pty=0 $packages > "$work/log" 2>&1 || { cat "$work/log" >&2; exit 1; }
fi

if [ ! -e $extension/vector.control ]; then
    # Lists of their own: the machine's sources stay as they are.
    mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Codename: bookworm' 'Component: main' | head -n 1)
    keys=/usr/share/keyrings/debian-archive-keyring.gpg
    echo "deb-src [signed-by=$keys] $mirror trixie main" > "$work/sources.list"
    mkdir -p "$work/lists/partial"
    chmod -R a+rX "$work"
    own="-o Dir::Etc::sourcelist=$work/sources.list -o Dir::Etc::sourceparts=- -o Dir::State::lists=$work/lists"
    # shellcheck disable=SC2086
    apt-get -qq $own -o APT::Sandbox::User=root update
    cd "$work"
    # shellcheck disable=SC2086
    apt-get -qq $own -o APT::Sandbox::User=root source --download-only pgvector
    dpkg-source --no-check -x pgvector_*.dsc source > /dev/null
    make -s -C source PG_CONFIG=/usr/lib/postgresql/15/bin/pg_config with_llvm=no OPTFLAGS= -j2 > "$work/log" 2>&1 \
        && make -s -C source PG_CONFIG=/usr/lib/postgresql/15/bin/pg_config with_llvm=no install >> "$work/log" 2>&1 \
        || { tail -n 30 "$work/log" >&2; exit 1; }
fi
