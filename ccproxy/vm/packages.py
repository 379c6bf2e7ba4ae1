"""
A guest's kernel and its busybox, from the packages of Debian or Ubuntu.

They are downloaded and unpacked into a folder of the cache; nothing is installed.
"""

from __future__ import annotations

import glob
import lzma
import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ..errors import CCProxyError

#: The package that always names the newest kernel, in Debian and in Ubuntu.
_KERNELS = ("linux-image-amd64", "linux-image-virtual")
#: The kernel modules that a guest needs, each with all that it depends on.
_MODULES = ("virtio_pci", "virtio_console", "9pnet_virtio", "9p")
_BUSYBOX = "busybox-static"


class NoImage(CCProxyError):
    """What a VM boots from cannot be had; the text says why, and what to do."""


def unpackGuest(folder: Path) -> None:
    """
    Put a guest's parts into a folder: C{vmlinuz}, C{modules} in the order of their loading, and
    C{busybox}.

    @raise NoImage: they cannot be had.
    """
    if platform.machine() != "x86_64":
        raise NoImage(f"VMs run on x86_64 only, and this is {platform.machine()}")
    if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
        raise NoImage(
            "a guest's kernel is taken from a package of Debian or Ubuntu, and there is no apt "
            "here: give another with --kernel and --initrd"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="unpacking-") as name:
        unpacked = Path(name, "root")
        _download([*_kernelPackages(), _BUSYBOX], name)
        for package in sorted(glob.glob(f"{name}/*.deb")):
            _run(["dpkg-deb", "-x", package, str(unpacked)])
        guest = Path(name, "guest")
        guest.mkdir()
        _collect(unpacked, guest)
        try:
            guest.replace(folder)
        except OSError:
            if not folder.exists():
                raise  # Otherwise somebody else was faster.


def _kernelPackages() -> list[str]:
    for name in _KERNELS:
        found, waiting = [], [name]
        while waiting:
            output = _run(["apt-cache", "depends", "--no-suggests", waiting.pop()], check=False)
            # A kernel's modules have a package of their own in Ubuntu.
            for package in re.findall(r"^ +Depends: (linux-(?:image|modules)-\S+)", output, re.M):
                if package not in found:
                    found.append(package)
                    waiting.append(package)
        versioned = [package for package in found if re.search(r"-\d+\.\d+", package)]
        if versioned:
            return versioned
    raise NoImage(
        f"apt knows no kernel package ({' or '.join(_KERNELS)}): run apt-get update as root, and "
        "see that the sources are those of Debian or Ubuntu for amd64"
    )


def _download(packages: Sequence[str], folder: str) -> None:
    _run(["apt-get", "download", "-q", *packages], cwd=folder)


def _run(command: Sequence[str], cwd: str | None = None, check: bool = True) -> str:
    result = subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, check=False,
        env={**os.environ, "LC_ALL": "C"},
    )  # fmt: skip
    if check and result.returncode:
        said = result.stderr.strip().splitlines()
        raise NoImage(f"{' '.join(command[:4])}... failed: {said[-1] if said else 'no reason'}")
    return result.stdout


def _collect(root: Path, guest: Path) -> None:
    """Copy what a guest needs out of the unpacked packages."""
    [kernel] = root.glob("boot/vmlinuz-*")
    shutil.copy(kernel, guest / "vmlinuz")
    modules = {path.name.partition(".")[0].replace("-", "_"): path for path in root.rglob("*.ko*")}
    (guest / "modules").mkdir()
    for number, name in enumerate(inOrder(modules)):
        target = guest / "modules" / f"{number:02}-{name}.ko"
        target.write_bytes(_module(modules[name]))
    [busybox] = root.rglob("bin/busybox")
    shutil.copy(busybox, guest / "busybox")


def inOrder(modules: dict[str, Path]) -> list[str]:
    """The modules, each behind those it depends on. One that is no file is in the kernel."""
    ordered: list[str] = []

    def add(name: str) -> None:
        if name in modules and name not in ordered:
            for other in _dependencies(_module(modules[name])):
                add(other)
            ordered.append(name)

    for name in _MODULES:
        add(name)
    return ordered


def _dependencies(module: bytes) -> list[str]:
    found = re.search(rb"\0depends=([^\0]*)\0", module)
    names = found[1].decode() if found else ""
    return [name.replace("-", "_") for name in names.split(",") if name]


def _module(path: Path) -> bytes:
    if path.suffix == ".xz":
        return lzma.decompress(path.read_bytes())
    if path.suffix == ".zst":
        unpacked = subprocess.run(["zstd", "-dc", path], capture_output=True, check=False)
        if unpacked.returncode:
            raise NoImage(f"{path.name} cannot be unpacked: apt-get install zstd")
        return unpacked.stdout
    return path.read_bytes()
