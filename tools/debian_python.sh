#!/bin/sh
# Debian keeps apart what this needs of Python 3.11: venv's ensurepip, and the library that PL/Python links to.
# Quick where both stand already; elsewhere than on Debian it says what is missing.
set -eu

python=$1
missing=""
"$python" -c 'import ensurepip' 2>/dev/null || missing="$missing python3.11-venv"
"$python" -c 'import ctypes.util, sys; sys.exit(ctypes.util.find_library("python3.11") is None)' ||
    missing="$missing libpython3.11"
[ -z "$missing" ] && exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get > /dev/null; then
    echo "missing:$missing" >&2
    # Without that library the rest works; only the embedded server has no SQL function.
    [ "$missing" = " libpython3.11" ] && exit 0
    exit 1
fi
export DEBIAN_FRONTEND=noninteractive
apt-get -qq update
# shellcheck disable=SC2086
apt-get -qq install --no-install-recommends -o Dpkg::Use-Pty=0 $missing > /dev/null
