"""
What a VM boots: an initramfs with the project's agent as its first process.

Python, and of its modules just those that the agent uses, are those that run here: whatever is
installed for ccproxy is known to work together. The modules are compiled without docstrings, so
that a guest without KVM, which is some twenty times slower, starts sooner.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import py_compile
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from .. import __version__
from . import cpio
from .packages import NoImage, unpackGuest

#: What the guest imports at once, and what it may import later.
IMPORTS = (
    "ccproxy.agent.guest", "ccproxy.agent.guestmachine", "ccproxy.agent.guestports",
    "ccproxy.net.monotonic",
    "twisted.internet.epollreactor", "encodings.ascii", "encodings.latin_1", "encodings.idna",
    "glob", "traceback", "linecache", "tokenize", "subprocess",
)  # fmt: skip
_LIST = """
import importlib, json, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
found = []
for name, module in sorted(sys.modules.items()):
    spec = getattr(module, "__spec__", None)
    path = getattr(module, "__file__", None)
    if spec is not None and path and name != "__main__":
        found.append((spec.name, path, spec.submodule_search_locations is not None))
print(json.dumps(found))
"""
#: Other images that are kept: another process may be about to boot one of the newest.
MAX_OTHERS = 2
_PYTHON = "usr/bin/python3"
_INIT = """#!/usr/bin/python3 -ISBu
from ccproxy.agent.guest import main
main()
"""
#: The name of the root file system that every VM can use.
BUSYBOX = "busybox"


def cacheFolder() -> Path:
    """Where images are kept: C{CCPROXY_VM_CACHE}, or a folder of the user's cache."""
    chosen = os.environ.get("CCPROXY_VM_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(chosen).absolute() if chosen else Path(base, "ccproxy", "vm")


def guestParts(cache: Path) -> Path:
    """
    The folder with a guest's kernel, modules and busybox, which are got if they are not there.

    @raise NoImage: they cannot be had.
    """
    folder = cache / "guest"
    if not folder.exists():
        unpackGuest(folder)
    return folder


def buildInitrd(cache: Path) -> Path:
    """
    The initramfs, which is built if it is not that of this Python and this ccproxy.

    @raise NoImage: something for it is missing.
    """
    guest = guestParts(cache)
    modules = _pythonModules()
    inputs = [path for _, path, _ in modules] + [str(p) for p in sorted(guest.rglob("*"))]
    key = hashlib.sha256(f"{__version__} {sys.version}".encode())
    for path in [*inputs, __file__]:
        status = os.stat(path)
        key.update(f"{path} {status.st_size} {status.st_mtime_ns}\n".encode())
    image = cache / f"initrd-{key.hexdigest()[:16]}.img"
    if not image.exists():
        content = cpio.archive({**_pythonEntries(modules), **_guestEntries(guest)})
        others = sorted(cache.glob("initrd-*.img"), key=lambda other: other.stat().st_mtime)
        for old in others[:-MAX_OTHERS]:
            old.unlink(missing_ok=True)
        _write(image, gzip.compress(content, 6, mtime=0))
    return image


def withAgent(initrd: Path, agent: Path, target: Path) -> Path:
    """
    An initramfs in which another agent takes the place of ours.

    @param agent: a program that needs no library.
    @param target: where to write it. Linux unpacks archives that follow each other.
    """
    more = cpio.archive({"agent": cpio.file(agent.read_bytes(), executable=True)})
    content = initrd.read_bytes()
    _write(target, content + bytes(-len(content) % 4) + more)
    return target


def busyboxShare(cache: Path) -> Path:
    """
    A folder to share with VMs that has the root file system C{busybox/rootfs}.

    @raise NoImage: there is no busybox.
    """
    share = cache / "share"
    root = share / BUSYBOX / "rootfs"
    if not (root / "bin/sh").exists():
        guest = guestParts(cache)
        for name in ("bin", "dev", "etc", "proc", "root", "sys", "tmp"):
            (root / name).mkdir(parents=True, exist_ok=True)
        (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
        (root / "etc/group").write_text("root:x:0:\n")
        (root / "bin/busybox").write_bytes((guest / "busybox").read_bytes())
        (root / "bin/busybox").chmod(0o755)
        for name in _run([str(root / "bin/busybox"), "--list"]).split():
            if not (root / "bin" / name).exists():
                (root / "bin" / name).symlink_to("busybox")
    return share


def _pythonModules() -> list[tuple[str, str, bool]]:
    """Name, file, and whether it is a package, of every Python module of the guest."""
    output = _run([sys.executable, "-P", "-c", _LIST, *IMPORTS])
    return [(name, path, package) for name, path, package in json.loads(output)]


def _pythonEntries(modules: list[tuple[str, str, bool]]) -> dict[str, cpio.Entry]:
    """Python itself, its modules, and the libraries that both need."""
    library = "usr/lib/python{}.{}".format(*sys.version_info)
    entries = {
        _PYTHON: cpio.file(Path(os.path.realpath(sys.executable)).read_bytes(), executable=True),
        "init": cpio.file(_INIT.encode(), executable=True),
    }
    binaries = [os.path.realpath(sys.executable)]
    with tempfile.TemporaryDirectory() as folder:
        for name, path, package in modules:
            place = f"{library}/{name.replace('.', '/')}"
            if path.endswith(".so"):
                parent = library if "." in name else f"{library}/lib-dynload"
                entry = f"{parent}/{'/'.join(name.split('.')[:-1])}/{os.path.basename(path)}"
                entries[os.path.normpath(entry)] = cpio.file(Path(path).read_bytes())
                binaries.append(path)
            else:
                target = f"{place}/__init__.pyc" if package else f"{place}.pyc"
                entries[target] = cpio.file(_compiled(path, target[len(library) + 1 :], folder))
    for name, path in _libraries(binaries).items():
        entries[name] = cpio.file(Path(path).read_bytes(), executable=True)
    return entries


def _compiled(path: str, name: str, folder: str) -> bytes:
    """
    A module's code, as bytes that tell nothing of when and where they were made.

    @param name: what tracebacks say.
    """
    target = os.path.join(folder, "module.pyc")
    mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
    py_compile.compile(path, target, name, doraise=True, optimize=2, invalidation_mode=mode)
    return Path(target).read_bytes()


def _libraries(binaries: Iterable[str]) -> dict[str, str]:
    """The shared libraries that programs need, and where a loader looks for them."""
    found = {}
    for line in _run(["ldd", *binaries]).splitlines():
        # name => /path (0x...), or /path (0x...) for the loader itself.
        match = re.search(r"^\s+(?:(\S+) => )?(/\S+) \(0x", line)
        if match:
            name, path = match.groups()
            place = f"/lib/x86_64-linux-gnu/{os.path.basename(name)}" if name else path
            found[place.lstrip("/")] = path
    return found


def _guestEntries(guest: Path) -> dict[str, cpio.Entry]:
    """The kernel's modules, and what programs beside the containers need."""
    modules = sorted((guest / "modules").iterdir())
    order = "".join(f"/lib/modules/{path.name}\n" for path in modules)
    entries = {f"lib/modules/{path.name}": cpio.file(path.read_bytes()) for path in modules}
    entries["lib/modules/load"] = cpio.file(order.encode())
    entries["bin/busybox"] = cpio.file((guest / "busybox").read_bytes(), executable=True)
    entries.update({f"bin/{name}": cpio.link("busybox") for name in ("ps", "sh")})
    for name in ("dev", "proc", "run", "sys", "tmp"):
        entries[name] = cpio.folder()
    return entries


def _write(path: Path, content: bytes) -> None:
    """Write a file that is whole whenever it is there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(content)
    os.replace(file.name, path)


def _run(command: list[str]) -> str:
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=variables)
    if result.returncode:
        raise NoImage(f"{command[0]} failed: {result.stderr.strip()[-500:]}")
    return result.stdout
