"""
Tests for L{ccproxy.vm}, with a program that stands for QEMU; those of real VMs are
C{test_real_}.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from unittest import mock

from twisted.trial.unittest import SynchronousTestCase

from ccproxy.ctl import vm as command
from ccproxy.test.ctl.test_ccproxyctl import TIMEOUT, Peer
from ccproxy.test.vm import fakeqemu
from ccproxy.testing.daemon import environment, script
from ccproxy.vm import cpio, hypervisor, image, packages
from ccproxy.vm.hypervisor import VM, Guest, VMError
from ccproxy.wire.codes import Command


class ArchiveTests(SynchronousTestCase):
    """Archives for the kernel."""

    def test_members(self) -> None:
        """Folders are before what is in them, and all is aligned to four bytes."""
        data = cpio.archive({"b/c/file": cpio.file(b"12345", True), "a": cpio.link("b")})
        found, at = [], 0
        while at < len(data):
            self.assertEqual(data[at : at + 6], b"070701")
            fields = [int(data[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n in range(13)]
            name = data[at + 110 : at + 110 + fields[11] - 1].decode()
            at += -(-(110 + fields[11]) // 4) * 4
            found.append((name, fields[1], data[at : at + fields[6]]))
            at += -(-fields[6] // 4) * 4
        folder = stat.S_IFDIR | 0o755
        self.assertEqual(
            found,
            [
                ("a", stat.S_IFLNK | 0o777, b"b"),
                ("b", folder, b""),
                ("b/c", folder, b""),
                ("b/c/file", stat.S_IFREG | 0o755, b"12345"),
                ("TRAILER!!!", 0, b""),
            ],
        )


class ImageTests(SynchronousTestCase):
    """The initramfs."""

    def setUp(self) -> None:
        # Few modules are compiled sooner; the real VMs' tests need all of them.
        self.patch(image, "IMPORTS", ("json", "twisted.python.failure"))
        self.cache = Path(self.mktemp())
        guest = self.cache / "guest"
        (guest / "modules").mkdir(parents=True)
        (guest / "modules" / "00-virtio.ko").write_bytes(b"module")
        (guest / "busybox").write_text("#!/bin/sh\necho sh; echo cat\n")
        (guest / "busybox").chmod(0o755)
        (guest / "vmlinuz").write_bytes(b"kernel")

    def test_sameBytes(self) -> None:
        """The same Python and the same guest give the same bytes; they are built once."""
        first = image.buildInitrd(self.cache)
        content, built = first.read_bytes(), first.stat().st_mtime_ns
        self.assertEqual(image.buildInitrd(self.cache).stat().st_mtime_ns, built)
        first.unlink()
        self.assertEqual(image.buildInitrd(self.cache), first)
        self.assertEqual(first.read_bytes(), content)

    def test_changed(self) -> None:
        """Other contents make another image. Of the other images only the newest two stay."""
        images = []
        for number in range(5):
            (self.cache / "guest" / "modules" / "00-virtio.ko").write_bytes(b"%d" % number)
            images.append(image.buildInitrd(self.cache))
            os.utime(images[-1], (number, number))
        self.assertEqual(sorted(self.cache.glob("initrd-*")), sorted(images[2:]))

    def test_agent(self) -> None:
        """Another agent follows at a place that the kernel finds."""
        (self.cache / "initrd").write_bytes(b"12345")
        (self.cache / "agent").write_bytes(b"an agent")
        target = image.withAgent(
            self.cache / "initrd", self.cache / "agent", self.cache / "together"
        )
        content = target.read_bytes()
        self.assertTrue(content.startswith(b"12345\0\0\x00070701"), content[:20])
        self.assertIn(b"an agent", content)

    def test_share(self) -> None:
        """The root file system for all has busybox under its names."""
        root = image.busyboxShare(self.cache) / image.BUSYBOX / "rootfs"
        self.assertEqual(os.readlink(root / "bin" / "cat"), "busybox")
        self.assertTrue((root / "proc").is_dir())
        image.busyboxShare(self.cache)

    def test_cache(self) -> None:
        """Images are kept where the environment says, or with the user's other caches."""
        self.patch(os, "environ", {"HOME": "/home/me"})
        self.assertEqual(image.cacheFolder(), Path("/home/me/.cache/ccproxy/vm"))
        os.environ["CCPROXY_VM_CACHE"] = "/somewhere"
        self.assertEqual(image.cacheFolder(), Path("/somewhere"))


class PackagesTests(SynchronousTestCase):
    """What a guest's parts come from."""

    def test_order(self) -> None:
        """Modules are loaded behind those they need; what the kernel has is left out."""
        folder = Path(self.mktemp())
        folder.mkdir()
        modules = {}
        for name, needs in (
            ("virtio_pci", b"virtio,virtio-ring"),
            ("virtio", b"virtio_ring"),
            ("virtio_ring", b""),
            ("virtio_console", b"virtio"),
            ("9p", b"9pnet"),
            ("9pnet", b""),
            ("other", b""),
        ):
            modules[name] = folder / f"{name}.ko"
            modules[name].write_bytes(b"\x7fELF\0depends=" + needs + b"\0name=x\0")
        self.assertEqual(
            packages.inOrder(modules),
            ["virtio_ring", "virtio", "virtio_pci", "virtio_console", "9pnet", "9p"],
        )

    def test_noApt(self) -> None:
        """Without apt it says what to do."""
        self.patch(os, "environ", {"PATH": "/nowhere"})
        error = self.assertRaises(packages.NoImage, packages.unpackGuest, Path(self.mktemp()))
        self.assertIn("--kernel", str(error))


class VMTestCase(SynchronousTestCase):
    """A place for VMs by a QEMU that is none."""

    def setUp(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="ccpvm"))
        program = self.folder / hypervisor.QEMU
        program.write_text(f'#!/bin/sh\nexec {sys.executable} {fakeqemu.__file__} "$@"\n')
        program.chmod(0o755)
        path = f"{self.folder}{os.pathsep}{os.environ['PATH']}"
        folders = {
            f"CCPROXY_VM_{name}": str(self.folder / value)
            for name, value in (("RUN", "vms"), ("CACHE", "cached"))
        }
        self.patch(os, "environ", {**os.environ, "PATH": path, **folders})
        self.patch(hypervisor, "FIRST_OUTPUT", 0.3)
        self.patch(hypervisor, "BOOT_TIMEOUT", 1.0)
        # Before the environment is that of this machine's real VMs again, as it is in tearDown.
        self.addCleanup(self.clear)

    def clear(self) -> None:
        """End what runs, and remove what is there."""
        for vm in hypervisor.allVMs():
            vm.kill()
        shutil.rmtree(self.folder)

    def start(self, how: str = "", *accelerators: str) -> VM:
        """Start a VM that behaves so."""
        vm = VM("one")
        guest = Guest("/vmlinuz", "/initrd", str(self.folder), append=how)
        vm.start(guest, accelerators or ("kvm", "tcg"))
        return vm

    def refused(self, how: str, *accelerators: str) -> str:
        """Start one in vain; why. Nothing of it is left."""
        error = self.assertRaises(VMError, self.start, how, *accelerators)
        self.assertEqual(hypervisor.allVMs(), [])
        return str(error)


class StartTests(VMTestCase):
    """Starting VMs, and ending them."""

    def test_life(self) -> None:
        """One that starts runs until it is killed, and then leaves nothing."""
        vm = self.start()
        self.assertEqual(vm.about()["accelerator"], "kvm")
        self.assertTrue(vm.isRunning())
        self.assertEqual(stat.S_IMODE(vm.folder.stat().st_mode), 0o700)
        vm.kill()
        self.assertFalse(vm.isRunning())
        vm.kill()
        vm.remove()
        self.assertEqual(hypervisor.allVMs(), [])

    def test_fallsBack(self) -> None:
        """Where KVM cannot be opened, or opens and nothing comes of it, QEMU emulates."""
        for how in ("silent-kvm", "refused-kvm"):
            vm = self.start(how)
            self.assertEqual(vm.about()["accelerator"], "tcg")
            vm.kill()
            vm.remove()

    def test_remembered(self) -> None:
        """KVM that was tried in vain is not tried again before the machine has been booted."""
        cache = self.folder / "cache"
        cache.mkdir()
        self.patch(os, "access", lambda path, mode: True)
        self.assertEqual(hypervisor.accelerators(cache), ["kvm", "tcg"])
        hypervisor.rememberSilence(cache)
        self.assertEqual(hypervisor.accelerators(cache), ["tcg"])
        [marker] = cache.iterdir()
        marker.rename(cache / "no-kvm-of-another-boot")
        self.assertEqual(hypervisor.accelerators(cache), ["kvm", "tcg"])

    def test_noKVM(self) -> None:
        """Without access to KVM it is not tried."""
        self.patch(os, "access", lambda path, mode: False)
        self.assertEqual(hypervisor.accelerators(self.folder), ["tcg"])

    def test_refused(self) -> None:
        """The reason is told when nothing works."""
        self.assertIn("No such device", self.refused("refused-kvm", "kvm"))
        self.assertIn("prints nothing under KVM", self.refused("silent-kvm", "kvm"))
        panicked = self.refused("panics", "tcg")
        self.assertIn("'one' has ended: Linux version 6.1", panicked)
        self.assertIn("its agent does not answer", self.refused("deaf", "tcg"))

    def test_noQEMU(self) -> None:
        """Without QEMU it says how to get it."""
        os.environ["PATH"] = "/nowhere"
        self.assertIn("apt-get install", self.refused(""))

    def test_twice(self) -> None:
        """A name is taken while its VM runs; what a dead one has left is replaced."""
        vm = self.start()
        error = self.assertRaises(VMError, self.start)
        self.assertIn("runs already", str(error))
        self.assertTrue(vm.isRunning())
        vm.kill()
        self.assertTrue(self.start().isRunning())

    def test_names(self) -> None:
        """Names that are none, and those that are too long for a socket."""
        for name in ("", ".", "..", "a/b", ".hidden"):
            self.assertRaises(VMError, VM, name)
        self.assertIn("CCPROXY_VM_RUN", str(self.assertRaises(VMError, VM, "x" * 100)))

    def test_anotherProcess(self) -> None:
        """A pid that means another process now is no VM."""
        vm = VM("one")
        vm.folder.mkdir(parents=True)
        (vm.folder / "pid").write_text(f"{os.getpid()}\n")
        self.assertFalse(vm.isRunning())

    def test_anotherNamespace(self) -> None:
        """A VM whose QEMU is not seen here, whatever process has its id, runs and is left alone."""
        vm = self.start()
        other = subprocess.Popen(["sleep", "60"])
        self.addCleanup(other.wait)
        self.addCleanup(other.kill)
        file = vm.folder / "pid"
        told = file.read_text()
        self.addCleanup(file.write_text, told)
        file.write_text(f"{other.pid}\n")
        self.patch(hypervisor, "STOP_TIMEOUT", 0.1)
        self.assertEqual((vm.isRunning(), vm.about()["pid"]), (True, 0))
        self.assertIn("runs already", str(self.assertRaises(VMError, self.start)))
        self.assertIn("PID namespace", str(self.assertRaises(VMError, vm.kill)))
        self.assertIsNone(other.poll())
        self.assertTrue(vm.folder.exists())

    def test_recycledID(self) -> None:
        """A process that has got the id between the look and the signal is not killed."""
        vm = self.start()
        answers = [os.getpid()]
        with mock.patch.object(vm, "pid", lambda: answers.pop() if answers else 0):
            self.patch(vm, "isRunning", lambda: False)
            self.patch(os, "kill", self.fail)
            self.patch(signal, "pidfd_send_signal", self.fail)
            vm.kill()
        self.assertEqual(answers, [])

    def test_comma(self) -> None:
        """A folder with a comma in its name."""
        os.environ["CCPROXY_VM_RUN"] = str(self.folder / "vms,id=x")
        self.assertTrue(self.start().isRunning())


class CommandTests(VMTestCase):
    """The command line."""

    def run_(self, *words: str) -> tuple[int, str, str]:
        """Run it; its status, and what it printed."""
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = command.main(words)
        return status, out.getvalue(), err.getvalue()

    def test_list(self) -> None:
        """Those that run, and those that have ended."""
        vm = self.start()
        _, out, _ = self.run_("list")
        self.assertEqual([line.split()[0] for line in out.splitlines()], ["NAME", "one"])
        self.assertIn(str(vm.pid()), out)
        [about] = json.loads(self.run_("list", "--json")[1])
        self.assertEqual((about["name"], about["pid"], about["memory"]), ("one", vm.pid(), 256))
        vm.kill()
        self.assertIn("ended", self.run_("list")[1])

    def test_stopUnknown(self) -> None:
        """One that there is not; those that there are are named."""
        self.start()
        status, _, err = self.run_("stop", "two")
        self.assertEqual(status, 125)
        self.assertIn("vm start has started: one", err)

    def test_stop(self) -> None:
        """A VM that is off before its agent's answer has got out has ended well."""
        vm = self.start()
        path = str(self.folder / "proxy")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
            listener.listen()
            listener.settimeout(TIMEOUT)
            stopping = subprocess.Popen(
                [*script("ccproxyctl"), "vm", "stop", "--url", path, "one"],
                env=environment(),
                stderr=subprocess.PIPE,
            )
            self.addCleanup(stopping.kill)
            peer = Peer(listener.accept()[0])
            self.addCleanup(peer.socket.close)
            peer.command(Command.ATTACH_VM)
            self.assertEqual(peer.commandWithoutAnswer(Command.HYPER)["hyperName"], "destroypod")
            vm.kill()
            peer.answer(Command.HYPER, error="one: VM is lost: the control channel was closed")
            again = Peer(listener.accept()[0])
            self.addCleanup(again.socket.close)
            again.command(Command.UNREGISTER_VM)
            self.assertEqual(
                (stopping.communicate(timeout=TIMEOUT)[1], stopping.returncode), (b"", 0)
            )
        self.assertFalse(vm.folder.exists())

    def test_missingFile(self) -> None:
        """What is named and not there is named in the error."""
        missing = str(self.folder / "missing")
        for option in ("--kernel", "--initrd", "--share", "--agent"):
            words = ["--kernel", os.devnull, "--initrd", os.devnull, option, missing]
            status, _, err = self.run_("start", "one", *words)
            self.assertEqual((status, missing in err), (125, True), err)
