"""
Let a recipe choose the exit status of GNU make.

make exits with 2 whenever a recipe fails, whatever its status was. What can end make with
another one is code in its own process, and its C{load} directive is the door for that: it loads a
shared object. No compiler is asked for, so this writes the object byte by byte: an ELF file whose
initialiser is the system call exit_group(STATUS).

Usage: exitstatus.py STATUS FOLDER. Prints the path of the object to load; where the machine is
none of those known here it prints nothing, and make ends with 2 as it always does.
"""

import os
import struct
import sys
import tempfile

PT_LOAD, PT_DYNAMIC = 1, 2
DT_NULL, DT_STRTAB, DT_SYMTAB, DT_STRSZ, DT_SYMENT, DT_INIT = 0, 5, 6, 10, 11, 12
HEADER = struct.Struct("<16s HHIQQQIHHHHHH")
SEGMENT = struct.Struct("<IIQQQQQQ")
ENTRY = struct.Struct("<QQ")
SYMBOL_SIZE = 24
READ, WRITE, EXECUTE = 4, 2, 1
PAGE = 0x10000


def x86_64(status: int) -> bytes:
    """mov edi, status; mov eax, 231; syscall"""
    return struct.pack("<BIBI", 0xBF, status, 0xB8, 231) + b"\x0f\x05"


def aarch64(status: int) -> bytes:
    """mov x0, status; mov x8, 94; svc 0"""
    return struct.pack("<III", 0xD2800000 | status << 5, 0xD2800008 | 94 << 5, 0xD4000001)


#: The ELF number of each machine, and its exit_group(status).
MACHINES = {"x86_64": (62, x86_64), "aarch64": (183, aarch64)}


def sharedObject(machine: int, code: bytes) -> bytes:
    """A shared object whose initialiser is C{code}: headers, dynamic section, code, tables."""
    dynamicAt = HEADER.size + 3 * SEGMENT.size
    dynamicSize = 6 * ENTRY.size
    codeAt = dynamicAt + dynamicSize
    # The loader wants a symbol table and a string table; zeros are an empty one of each.
    symbolsAt = codeAt + len(code) + -len(code) % 8
    size = symbolsAt + SYMBOL_SIZE
    ident = b"\x7fELF" + bytes([2, 1, 1])
    header = HEADER.pack(
        ident, 3, machine, 1, 0, HEADER.size, 0, 0, HEADER.size, SEGMENT.size, 3, 0, 0, 0
    )

    def segment(kind: int, flags: int, offset: int, address: int, length: int, align: int) -> bytes:
        return SEGMENT.pack(kind, flags, offset, address, address, length, length, align)

    # The whole file is mapped twice: to run the code, and, a page on, for older loaders, which
    # write into the dynamic section.
    segments = (
        segment(PT_LOAD, READ | EXECUTE, 0, 0, size, PAGE)
        + segment(PT_LOAD, READ | WRITE, 0, PAGE, size, PAGE)
        + segment(PT_DYNAMIC, READ | WRITE, dynamicAt, PAGE + dynamicAt, dynamicSize, 8)
    )
    dynamic = b"".join(
        ENTRY.pack(tag, value)
        for tag, value in (
            (DT_INIT, codeAt),
            (DT_STRTAB, symbolsAt),
            (DT_SYMTAB, symbolsAt),
            (DT_STRSZ, 1),
            (DT_SYMENT, SYMBOL_SIZE),
            (DT_NULL, 0),
        )
    )
    return (header + segments + dynamic + code).ljust(size, b"\0")


def main(status: int, folder: str) -> None:
    known = MACHINES.get(os.uname().machine)
    if known is None or sys.maxsize < 1 << 32:
        return
    machine, exitGroup = known
    path = os.path.join(folder, f"exit-{status}.so")
    if not os.path.exists(path):
        with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
            file.write(sharedObject(machine, exitGroup(status)))
        os.rename(file.name, path)
    print(path)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
