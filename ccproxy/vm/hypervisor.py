"""
VMs by QEMU, each with a folder that has its sockets and says what it is.

A VM's two channels and its console are UNIX sockets to which the proxy connects. It runs under
KVM where that works, which is known only when the guest has printed something: C{/dev/kvm} may
open, and the guest never run. Otherwise QEMU emulates the processor, some twenty times slower.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import attrs

from ..agent.guestports import CONTROL, IO
from ..errors import CCProxyError
from ..wire.codes import MAX_PATH
from .image import withAgent
from .monitor import Monitor

QEMU = "qemu-system-x86_64"
#: What every guest's kernel is told: where to print, to end rather than hang, to be quick.
KERNEL_WORDS = "console=ttyS0 panic=-1 mitigations=off no_timer_check"
#: The mount tag of the folder that a VM shares.
SHARE = "share"
#: Seconds until a guest under KVM has printed something, if it runs at all.
FIRST_OUTPUT = 5.0
#: Seconds until the guest's agent has opened its channel.
BOOT_TIMEOUT = 120.0
#: Seconds that a VM has to end by itself.
STOP_TIMEOUT = 5.0
_INTERVAL = 0.02
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class VMError(CCProxyError):
    """A VM cannot be started or stopped; the text says why, and what to do."""


@attrs.frozen
class Guest:
    """
    What a VM is made of.

    @ivar kernel: what it boots.
    @ivar initrd: the root file system that it begins with.
    @ivar agent: what its agent is, if not the one in there.
    @ivar share: the folder of the host's that it sees.
    @ivar writable: whether it may write there.
    @ivar memory: in MiB.
    @ivar append: more words for the kernel's command line.
    """

    kernel: str
    initrd: str
    share: str
    agent: str | None = None
    writable: bool = False
    memory: int = 256
    append: str = ""


def runFolder() -> Path:
    """Where the folders of running VMs are: C{CCPROXY_VM_RUN}, or a folder of the user's."""
    chosen = os.environ.get("CCPROXY_VM_RUN")
    if chosen:
        return Path(chosen).absolute()
    if os.getuid() == 0:
        return Path("/run/ccproxy/vms")
    private = os.environ.get("XDG_RUNTIME_DIR") or os.path.expanduser("~/.cache")
    return Path(private, "ccproxy", "vms")


class VM:
    """
    A VM, whether or not it runs.

    @ivar name: its name.
    @ivar folder: where its sockets are.
    @ivar control: the path of its control channel; so are L{io} and L{console}.
    """

    def __init__(self, name: str) -> None:
        """
        @raise VMError: it cannot have that name.
        """
        if not name or name.startswith(".") or "/" in name:
            raise VMError(f"{name!r} names no VM: give it letters and digits")
        self.name = name
        self.folder = runFolder() / name
        self.control, self.io, self.console, self._monitor = (
            str(self.folder / name) for name in ("control", "io", "console", "monitor")
        )
        if len(os.fsencode(self._monitor)) > MAX_PATH:
            raise VMError(
                f"{self._monitor} is too long for a socket: take a shorter name, or name another "
                "folder in CCPROXY_VM_RUN"
            )

    # Starting

    def start(self, guest: Guest, accelerators: Sequence[str]) -> None:
        """
        Start it, and wait until its agent has opened the control channel.

        @param accelerators: what to run it by; the next one if nothing comes of the first.
        @raise VMError: it does not run.
        """
        if shutil.which(QEMU) is None:
            raise VMError(
                f"there is no {QEMU} here. On Debian and Ubuntu: "
                "apt-get install --no-install-recommends qemu-system-x86"
            )
        if self.folder.exists():
            if self.isRunning():
                raise VMError(f"a VM {self.name!r} runs already: ccproxyctl vm stop {self.name}")
            self.remove()
        self.folder.mkdir(parents=True, mode=0o700)
        try:
            if guest.agent is not None:
                initrd = withAgent(Path(guest.initrd), Path(guest.agent), self.folder / "initrd")
                guest = attrs.evolve(guest, initrd=str(initrd))
            self._boot(guest, accelerators)
        except BaseException:
            self.kill()
            self.remove()
            raise

    def _boot(self, guest: Guest, accelerators: Sequence[str]) -> None:
        for accelerator in accelerators:
            reason = self._launch(guest, accelerator) or self._silence(accelerator)
            if not reason:
                break
            self.kill()
        else:
            raise VMError(f"the VM {self.name!r} does not start: {reason}")
        about = {"name": self.name, "accelerator": accelerator, "memory": guest.memory}
        times = {"startedAt": time.time(), "monotonic": time.monotonic()}
        (self.folder / "vm.json").write_text(json.dumps({**about, **times}))
        self._await(lambda: self._opened("control"), BOOT_TIMEOUT, "its agent does not answer")

    def _launch(self, guest: Guest, accelerator: str) -> str:
        """Start QEMU; why it does not start."""
        processor = "host" if accelerator == "kvm" else "max"
        words = [QEMU, "-name", self.name, "-accel", accelerator, "-cpu", processor]
        words += ["-smp", "1", "-m", str(guest.memory)]
        words += ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
        words += ["-daemonize", "-pidfile", str(self.folder / "pid")]
        words += ["-kernel", guest.kernel, "-initrd", guest.initrd]
        words += ["-append", f"{KERNEL_WORDS} {guest.append}"]
        words += ["-device", "virtio-serial-pci"]
        for name in ("control", "io", "console", "monitor"):
            path = _quoted(str(self.folder / name))
            chardev = f"socket,id={name},path={path},server=on,wait=off"
            if name == "console":
                chardev += f",logfile={_quoted(str(self.folder / 'console.log'))}"
            words += ["-chardev", chardev]
        words += ["-serial", "chardev:console", "-mon", "chardev=monitor,mode=control"]
        for name, port in (("control", CONTROL), ("io", IO)):
            words += ["-device", f"virtserialport,chardev={name},name={port}"]
        readonly = "off" if guest.writable else "on"
        path = _quoted(guest.share)
        words += ["-fsdev", f"local,id=share,path={path},security_model=none,readonly={readonly}"]
        words += ["-device", f"virtio-9p-pci,fsdev=share,mount_tag={SHARE}"]
        result = subprocess.run(words, capture_output=True, text=True, cwd="/", check=False)
        return result.stderr.strip() or "QEMU fails" if result.returncode else ""

    def _silence(self, accelerator: str) -> str:
        """Wait for the guest's first words; why there are none."""
        if accelerator != "kvm":
            return ""
        try:
            self._await(lambda: bool(self.said()), FIRST_OUTPUT, "it prints nothing under KVM")
        except VMError as error:
            return str(error)
        return ""

    def _await(self, probe: Callable[[], bool], timeout: float, problem: str) -> None:
        deadline = time.monotonic() + timeout
        while not probe():
            if not self.pid():
                raise VMError(f"the VM {self.name!r} has ended: {_tail(self.said())}")
            if time.monotonic() > deadline:
                raise VMError(f"{problem}, {timeout:g} s after its start: {_tail(self.said())}")
            time.sleep(_INTERVAL)

    def _opened(self, device: str) -> bool:
        try:
            with Monitor(self._monitor) as monitor:
                return monitor.opened(device)
        except OSError:
            return False

    # While it runs

    def said(self) -> str:
        """All that came from its console."""
        try:
            return (self.folder / "console.log").read_text(errors="replace")
        except FileNotFoundError:
            return ""

    def pid(self) -> int:
        """The process id of its QEMU, 0 if it has none."""
        try:
            pid = int((self.folder / "pid").read_text())
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
        except (OSError, ValueError):
            return 0
        return pid if os.fsencode(self.folder / "pid") in command.split(b"\0") else 0

    def isRunning(self) -> bool:
        """Return whether QEMU runs it, even hidden in another PID namespace."""
        if self.pid():
            return True
        with socket.socket(socket.AF_UNIX) as probe:
            probe.setblocking(False)
            return probe.connect_ex(self._monitor) not in (errno.ECONNREFUSED, errno.ENOENT)

    def about(self) -> dict[str, object]:
        """What C{vm list} says of it."""
        try:
            known: dict[str, object] = json.loads((self.folder / "vm.json").read_text())
        except FileNotFoundError:
            known = {"name": self.name}
        begun = known.pop("monotonic", None)
        age = time.monotonic() - begun if isinstance(begun, float) else None
        running = self.isRunning()
        return {
            **known, "age": age, "pid": self.pid(), "running": running, "folder": str(self.folder)
        }  # fmt: skip

    # Ending

    def ended(self, timeout: float) -> bool:
        """Whether it ends within that many seconds."""
        deadline = time.monotonic() + timeout
        while self.isRunning():
            if time.monotonic() > deadline:
                return False
            time.sleep(_INTERVAL)
        return True

    def kill(self) -> None:
        """Switch it off, if it runs."""
        pid = self.pid()
        if pid:
            with suppress(ProcessLookupError):
                process = os.pidfd_open(pid)
                try:
                    # The id may have become another process's before it was opened.
                    if self.pid() == pid:
                        signal.pidfd_send_signal(process, signal.SIGKILL)
                finally:
                    os.close(process)
            if not self.ended(STOP_TIMEOUT):
                raise VMError(f"QEMU, process {pid} of the VM {self.name!r}, cannot be killed")
        elif not self.ended(STOP_TIMEOUT):
            raise VMError(
                f"the QEMU of the VM {self.name!r} runs in another PID namespace, in a container "
                "perhaps: stop it there"
            )

    def remove(self) -> None:
        """Remove what a VM that has ended leaves behind."""
        shutil.rmtree(self.folder, ignore_errors=True)


def allVMs() -> list[VM]:
    """The VMs that run, or have left something behind."""
    folder = runFolder()
    return [VM(path.name) for path in sorted(folder.iterdir())] if folder.is_dir() else []


def accelerators(cache: Path) -> list[str]:
    """What a VM may be run by here, the best first."""
    if _marker(cache).exists() or not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return ["tcg"]
    return ["kvm", "tcg"]


def rememberSilence(cache: Path) -> None:
    """KVM was tried in vain: do without until this machine is booted again."""
    _marker(cache).touch()


def _marker(cache: Path) -> Path:
    return cache / f"no-kvm-{_BOOT_ID.read_text().strip()}"


def _quoted(path: str) -> str:
    """A path as a value among QEMU's options."""
    return path.replace(",", ",,")


def _tail(text: str, lines: int = 8) -> str:
    return "\n".join(text.splitlines()[-lines:]) or "it has printed nothing"
