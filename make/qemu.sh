#!/bin/sh
# See that there is what a real VM needs: QEMU, and package lists to find a guest's kernel in.
# On Debian and Ubuntu it is installed, elsewhere and without rights this says what is missing.
set -e

if command -v qemu-system-x86_64 > /dev/null && test -d "$CCPROXY_VM_CACHE/guest"; then
    exit 0
fi
if ! command -v apt-get > /dev/null; then
    echo "A VM needs qemu-system-x86_64 and a guest's kernel, which come from packages of Debian" \
        "or Ubuntu; there is no apt-get here. With QEMU and a guest image of your own:" \
        "ccproxyctl vm start NAME --kernel FILE --initrd FILE" >&2
    exit 1
fi
if ! apt-cache depends linux-image-amd64 2> /dev/null | grep -q Depends &&
    ! apt-cache depends linux-image-virtual 2> /dev/null | grep -q Depends; then
    lists=apt-get\ update
fi
if ! command -v qemu-system-x86_64 > /dev/null; then
    install="apt-get install -y --no-install-recommends qemu-system-x86"
    lists=apt-get\ update
fi
test -n "$lists" || exit 0
if test "$(id -u)" != 0; then
    echo "A VM needs this, as root: $lists${install:+ && $install}" >&2
    exit 1
fi
echo "Getting QEMU: $lists${install:+ && $install}" >&2
$lists -qq >&2
test -z "$install" || $install -qq > /dev/null
