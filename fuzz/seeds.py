"""
C{python -m fuzz.seeds}: writes the beginnings that fuzzing starts from into C{fuzz/corpus}.

They reach what takes a while to be found by chance; what a run has found that breaks a target is
put beside them by hand, once it is mended.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from ccproxy.service.ccproxy_command import FLAGS
from ccproxy.wire.codes import Command, ControlCode, FrameType, Stream
from ccproxy.wire.frames import encodeFrame, encodeProcessExited, encodeStream
from ccproxy.wire.messages import CONTROL_HEADER, IO_HEADER, encodeControl, encodeIO

from .decoders import LIMIT
from .play import STEPS, Play

CORPUS = Path(__file__).parent / "corpus"
_EVENT = b'{"event":"finished","container":"c","process":"(null)","status":7}'
_START = (
    b'{"id":"c", "image":"i","rootfs":"r","process" : {"envs":[{"env":"A","value":"\\u00e9"}],'
    b'"args":["sh","-c","true"],"terminal":false,"stdio":0,"id":null,"user":1.50} , "z":[{}]}'
)


def _step(action: Callable[[Play], None], *operands: int) -> bytes:
    return bytes([STEPS.index(action), *operands])


#: VM a with three tokens, registered by the first client; its agent is READY.
_REGISTERED = _step(Play.register, 255, 0, 3)


def _started(dialect: int, kind: int = 0) -> bytes:
    """A process with the first token, whose shim is the second client."""
    begin = bytes([dialect]) + _REGISTERED + _step(Play.connectShim, 255, 0)
    start = _step(Play.start, 0, kind, 0)
    return begin + start + _step(Play.agentAnswers, 0, 0)


def _plays() -> Iterator[bytes]:
    for dialect in range(5):
        running = _started(dialect)
        flow = _step(Play.output, 0, 0, 0, 200, 3, 0) + _step(Play.stdin, 1, 2, 0, 5, 0)
        yield running + flow + _step(Play.exit, 0, 0) + _step(Play.disconnectShim, 1)
        yield (
            running
            + _step(Play.clientReads, 1, 2)
            + _step(Play.output, 0, 0, 11, 0, 6, 0)
            + _step(Play.clientLeaves, 1, 1)
            + _step(Play.output, 0, 1, 0, 90, 1, 0)
            + _step(Play.connectShim, 255, 0)
            + _step(Play.exit, 0, 0)
        )
        yield running + _step(Play.signal, 1, 0) + _step(Play.channelEnds, 0, 3)
    hyperstart = _started(0, 4) + _step(Play.agentAnswers, 0, 6) + _step(Play.agentAnswers, 0, 4)
    yield hyperstart + _step(Play.agentTellsEnd, 0, 3) + _step(Play.exit, 0, 0)
    parked = bytes([0]) + _REGISTERED + _step(Play.start, 0, 0, 0)
    yield parked + _step(Play.timePasses, 6)
    yield parked + _step(Play.clientLeaves, 0, 0)
    yield parked + _step(Play.unregister, 0, 0) + _step(Play.channelEnds, 0, 3)
    late = bytes([0]) + _step(Play.register, 255, 0, 200) + _step(Play.timePasses, 3)
    yield late + _step(Play.agentAnswers, 0, 0) + _step(Play.agentSendsBytes, 0, 1, 9)
    full = _started(2) + _step(Play.agentReads, 0, 16)
    yield full + _step(Play.stdin, 1, 15, 0, 7, 0) * 3 + _step(Play.clientLeaves, 1, 1)
    slow = _started(2) + _step(Play.clientReads, 1, 1)
    yield slow + _step(Play.output, 0, 0, 11, 0, 7, 0) * 2 + _step(Play.timePasses, 5)
    held = bytes([0]) + _REGISTERED + _step(Play.connectShim, 255, 0)
    yield held + _step(Play.signal, 1, 2) + _step(Play.stdin, 1, 0, 9, 1, 0)
    yield held + _step(Play.signal, 1, 0) + _step(Play.start, 0, 0, 0)
    yield bytes([0]) + _step(Play.clientSendsBytes, 255, 12) + b"\2\0\3\0\0\0\0\0\0\0\0\1"


def seeds() -> Iterator[tuple[str, bytes]]:
    """Names of targets, and inputs for them."""
    for data in _plays():
        yield "protocol", data
    for dialect in range(3):
        bulk = b"\x30\0\0\x20\x0b\x05\x06\x31\1\xaa\x20\x0b\x09\7"
        yield "lanes", bytes([dialect]) + b"\x12\0\x10" + bulk * 4 + b"\2\0\0" + bulk
        yield "lanes", bytes([dialect]) + b"\x13\0\x08" + bulk[7:] * 9
    frames = encodeStream(Stream.STDIN, b"ls\n") * 2 + encodeFrame(FrameType.COMMAND, 3, b"{}")
    yield "frames", b"\5\1\2\3\4\5" + frames
    yield "frames", b"\0\0\2\4\0\0\0\0\1\0\0\0\1\xff\xff\xff\xffx"
    yield "frames", b"\0" + encodeFrame(FrameType.RESPONSE, 6, b'{"msg":"no"}', error=True)
    yield "frames", b"\0\0\2\3\0\0\0\4\0\0\0\0\0"
    yield "frames", b"\0\0\2\3\0\0\0\0\3\xff\xff\xff\xff"
    for size in (LIMIT, LIMIT + 1):
        yield "frames", b"\0" + encodeStream(Stream.STDOUT, bytes(size))
    answers = encodeControl(ControlCode.READY) + encodeControl(ControlCode.NEXT, bytes(4))
    yield "control", b"\2\1\7" + answers + encodeControl(23, _EVENT)
    yield "control", b"\0" + _EVENT
    yield "control", b"\0\0\0\0\x09\0\0\0\7"
    for size in (LIMIT, LIMIT + 1):
        yield "control", b"\0" + encodeControl(ControlCode.ACK, bytes(size - CONTROL_HEADER.size))
        yield "io", b"\0" + encodeIO(3, bytes(size - IO_HEADER.size))
    end = encodeIO(3) + encodeIO(3, b"\0")
    yield "io", b"\2\1\x0b" + encodeIO(3, b"out") + encodeIO(4, b"err") + end
    yield "io", b"\0" + encodeIO(1 << 63, b"x")[:11]
    texts = [
        b'{"containerId":"a","ctlSerial":"/c","ioSerial":"/i","console":null,"numIOStreams":2}',
        b'{"containerId":"a","numIOStreams":4097}',
        b'{"containerId":""}',
        b'{"hyperName":"newcontainer","tokens":["t"],"data":%b}' % _START,
        b'{"token":"t"}',
        b'{"signalNumber":28,"columns":80,"rows":24}',
        b'{"source":"shim","level":"warn","msg":"\\ud800","containerId":"a"}',
        b'{"io":{"url":"unix:///s","URL":null,"tokens":["t"]}}',
        b'{"msg":"[[[["}',
    ]
    for number, text in enumerate(texts):
        yield "payload", bytes([number]) + text
    for kind, text in ((0, _START), (1, _START.replace(b'"id"', b'"container"', 1))):
        yield "relocation", bytes([kind]) + text
    yield "relocation", b'\0{"process":{"args":["a"],"Stdio":0}}'
    yield "relocation", b'\0{"process":{"stdio":0,"args":["a"],"stdio":0,"terminal":true}}'
    yield "translation", bytes([0, 5, 7, 0, 5, 3, 1, 9, 1, 3, 0, 0, 4, 39, 7, 5, 9, 9])
    for flag in FLAGS:
        yield "flags", f"-{flag.name}\0true\0--{flag.name}=1\0--\0rest".encode()
    yield "flags", b"-h"
    for format in range(3):
        text = 'a"b\\c\n\x85\u2028\x1b[0m'.encode() + b"\xff" + b"A" * 43 + b"="
        yield "logline", bytes([format, 4]) + b"c=\nd" + text
    bodies = [b"", b'{"container":"c"}']
    commands = b"".join(bytes([0, 0, 0, len(body)]) + body for body in bodies)
    for flags in (8, 9, 10, 12, 13, 14):
        yield "agent", bytes([flags]) + commands + b"\1\3\2ab\0" + b"\2\0\4text" + b"\3\0\x40"
    io = b'{"io":{"tokens":["t"]}}'
    results = {
        Command.REGISTER_VM: io,
        Command.ATTACH_VM: io,
        Command.HYPER: b"",
        Command.SIGNAL: b"",
    }
    responses = b"".join(encodeFrame(FrameType.RESPONSE, *answer) for answer in results.items())
    streams = encodeStream(Stream.STDOUT, b"o") + encodeStream(Stream.STDERR, b"e")
    for flags in (0, 1):
        yield "client", bytes([flags, 2, 5, 30]) + responses + streams + encodeProcessExited(3)


def main() -> None:
    """Write the seeds."""
    count: dict[str, int] = {}
    for name, data in seeds():
        number = count[name] = count.get(name, 0) + 1
        folder = CORPUS / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"seed-{number:02}").write_bytes(data)


if __name__ == "__main__":
    main()
