"""
Payloads: what is read, what is refused with which text, and what is sent.
"""

from __future__ import annotations

import json

from hypothesis import example, given
from hypothesis import strategies as st
from msgspec import UNSET, Raw
from twisted.trial.unittest import SynchronousTestCase

from ccproxy.errors import BadPayload
from ccproxy.testing.strategies import clientPayloads, damagedJSON, json_values
from ccproxy.wire.payloads import (
    SIGWINCH,
    AttachVM,
    ConnectShim,
    ErrorResponse,
    Hyper,
    IOResponse,
    LogEntry,
    RegisterVM,
    Signal,
    UnregisterVM,
    decode,
    encode,
)

CLASSES = (RegisterVM, AttachVM, UnregisterVM, Hyper, ConnectShim, Signal, LogEntry)
#: The least that each class needs.
LEAST: dict[type, dict[str, object]] = {
    RegisterVM: {"containerId": "vm", "ctlSerial": "/c", "ioSerial": "/i"},
    AttachVM: {"containerId": "vm"},
    UnregisterVM: {"containerId": "vm"},
    Hyper: {"hyperName": "ping"},
    ConnectShim: {"token": "t"},
    Signal: {"signalNumber": 15},
    LogEntry: {"source": "shim", "level": "warn", "msg": "m"},
}


class PayloadTestCase(SynchronousTestCase):
    """What the tests below have in common."""

    def refused(self, cls: type, payload: object) -> str:
        """The text of the error that decoding raises."""
        data = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
        error = self.assertRaises(BadPayload, decode, cls, data)
        return str(error)

    def changed(self, cls: type, **members: object) -> dict[str, object]:
        """The least payload of a class, with some members more or other."""
        return {**LEAST[cls], **members}


class ReadingTests(PayloadTestCase):
    """L{decode}, of what is right."""

    def test_least(self) -> None:
        """What may be absent is absent."""
        self.assertEqual(
            decode(RegisterVM, encode(LEAST[RegisterVM])), RegisterVM("vm", "/c", "/i", None, 0)
        )
        self.assertEqual(decode(AttachVM, encode(LEAST[AttachVM])), AttachVM("vm", 0))
        self.assertEqual(decode(Hyper, encode(LEAST[Hyper])), Hyper("ping", None, UNSET))
        self.assertEqual(decode(Signal, encode(LEAST[Signal])), Signal(15, None, None))
        self.assertEqual(
            decode(LogEntry, encode(LEAST[LogEntry])), LogEntry("shim", "warn", "m", None)
        )

    def test_null(self) -> None:
        """null means absent, where a field may be absent."""
        for cls, names in (
            (RegisterVM, ["console", "numIOStreams"]),
            (AttachVM, ["numIOStreams"]),
            (Hyper, ["tokens"]),
            (Signal, ["columns", "rows"]),
            (LogEntry, ["containerId"]),
        ):
            payload = decode(cls, encode(self.changed(cls, **dict.fromkeys(names))))
            for name in names:
                self.assertFalse(getattr(payload, name))

    def test_unknownKeys(self) -> None:
        """Keys that are not known are ignored, whatever they hold."""
        for cls in CLASSES:
            least = decode(cls, encode(LEAST[cls]))
            more = self.changed(cls, future={"deep": [1, None, "x"]}, ContainerID=5)
            self.assertEqual(decode(cls, encode(more)), least)

    @given(clientPayloads)
    def test_roundTrip(self, payload: object) -> None:
        """What is encoded is decoded to its equal."""
        self.assertEqual(decode(type(payload), encode(payload)), payload)

    @given(json_values, st.sampled_from(["", " ", "\n\t "]))
    def test_rawData(self, value: object, space: str) -> None:
        """The data of a Hyper is kept byte for byte, white space and spelling included."""
        data = json.dumps(value, indent=len(space), ensure_ascii=bool(space)).encode()
        payload = b'{"data":' + data + b',"hyperName":"ping"}'
        decoded = decode(Hyper, payload)
        assert isinstance(decoded.data, Raw)
        self.assertEqual(bytes(decoded.data), data)

    def test_rawForms(self) -> None:
        """Numbers of any size and form, escapes and doubled keys pass as they stand."""
        for data in (
            b"1e3",
            b"-0",
            b"1.50",
            b"123456789012345678901234567890",
            b"1e999",
            b"null",
            b'"\\u00e9\\/"',
            b'{"a":1,"a":2}',
            b"[1, 2 ,3]",
            b'{"x" : "\xff"}',
        ):
            decoded = decode(Hyper, b'{"hyperName":"x","data":' + data + b"}")
            assert isinstance(decoded.data, Raw)
            self.assertEqual(bytes(decoded.data), data)

    def test_streamCounts(self) -> None:
        """P5: numIOStreams is 0 to 4096."""
        for count in (0, 1, 4096):
            attach = decode(AttachVM, encode(self.changed(AttachVM, numIOStreams=count)))
            register = decode(RegisterVM, encode(self.changed(RegisterVM, numIOStreams=count)))
            self.assertEqual((attach.numIOStreams, register.numIOStreams), (count, count))


class RefusingTests(PayloadTestCase):
    """L{decode}, of what is wrong: P3."""

    def test_missing(self) -> None:
        """A field that is missing is named, and so is the command."""
        for cls in CLASSES:
            for name in LEAST[cls]:
                members = self.changed(cls)
                del members[name]
                text = self.refused(cls, members)
                self.assertIn(f"malformed {cls.__name__} command", text)
                self.assertIn(name, text)

    def test_wrongType(self) -> None:
        """A field of another type is named."""
        for cls in CLASSES:
            for name, value in LEAST[cls].items():
                other = 7 if isinstance(value, str) else "7"
                wrongs: list[object] = [None, [], {}, 1.5, True, other]
                for wrong in wrongs:
                    text = self.refused(cls, self.changed(cls, **{name: wrong}))
                    self.assertIn(f"$.{name}", text)

    def test_noObject(self) -> None:
        """What is JSON but no object is refused."""
        for cls in CLASSES:
            for payload in (b"null", b"[]", b"5", b'"x"', b"true"):
                self.assertIn(f"malformed {cls.__name__} command", self.refused(cls, payload))

    def test_noJSON(self) -> None:
        """What is no JSON is refused, and what is more than JSON."""
        for cls in CLASSES:
            for payload in (
                b"",
                b"{",
                b"}{",
                b"\xff\xfe",
                b"\0",
                b"{}{}",
                b"nonsense",
                b"{]",
                b'{"containerId": }',
                json.dumps(LEAST[cls]).encode() + b"x",
            ):
                self.assertIn(f"malformed {cls.__name__} command", self.refused(cls, payload))

    def test_notUTF8(self) -> None:
        """Text that is not UTF-8 is refused; half a surrogate pair too: no text can have it."""
        for text in (b"\xff", b"\xed\xa0\x80", b"\xc3", rb"\udc00", rb"\ud800", rb"\ud800\ud800"):
            self.refused(AttachVM, b'{"containerId":"' + text + b'"}')
            self.refused(AttachVM, b'{"containerId":"' + text + b'plus some more"}')

    def test_deep(self) -> None:
        """JSON that is nested too deep to be read is refused, wherever it is."""
        deep = b"[" * 200_000 + b"]" * 200_000
        for payload in (
            b'{"hyperName":"ping","data":' + deep + b"}",
            b'{"hyperName":"ping","other":' + deep + b"}",
            b'{"a":' * 100_000,
        ):
            self.assertIn("too deep", self.refused(Hyper, payload))

    def test_streamCounts(self) -> None:
        """P5: numIOStreams outside of 0 to 4096, or no whole number, is named."""
        for cls in (RegisterVM, AttachVM):
            for count in (
                "-1",
                "4097",
                "9223372036854775808",
                str(-(10**30)),
                str(10**30),
                "1.5",
                "1e400",
                '"2"',
                "[1]",
                "false",
            ):
                members = json.dumps(self.changed(cls))[:-1]
                payload = f'{members}, "numIOStreams": {count}}}'.encode()
                self.assertIn("numIOStreams", self.refused(cls, payload))

    def test_containerId(self) -> None:
        """An empty containerId is refused, and one that could fill the log."""
        for cls in (RegisterVM, AttachVM, UnregisterVM):
            for name in ("", "x" * 1025):
                self.assertIn("containerId", self.refused(cls, self.changed(cls, containerId=name)))

    def test_signalNumbers(self) -> None:
        """Signal numbers are whole and 0 to 64."""
        for number in (-1, 65, 2**31, 2**64, 10**30, 9.5, "9"):
            text = self.refused(Signal, {"signalNumber": number})
            self.assertIn("signalNumber", text)

    def test_cells(self) -> None:
        """A size does not wrap around at 16 bits."""
        for name in ("columns", "rows"):
            for value in (-1, 65536, 65536 + 80, 80.5, "80"):
                text = self.refused(Signal, {"signalNumber": SIGWINCH, name: value})
                self.assertIn(name, text)

    def test_tokens(self) -> None:
        """Tokens are a list of texts."""
        for tokens in ("t", {"t": 1}, [1], [None], [["t"]]):
            self.assertIn("tokens", self.refused(Hyper, {"hyperName": "x", "tokens": tokens}))

    def test_logEntries(self) -> None:
        """P4: source and level are of few values, and a message says something."""
        for wrong in (
            {"source": "proxy"},
            {"source": "hyperstart"},
            {"source": "Shim"},
            {"level": "fatal"},
            {"level": "warning"},
            {"level": ""},
            {"msg": ""},
            {"containerId": 5},
        ):
            text = self.refused(LogEntry, self.changed(LogEntry, **wrong))
            self.assertIn(next(iter(wrong)), text)

    def test_what(self) -> None:
        """The error may call a payload by another name."""
        error = self.assertRaises(BadPayload, decode, AttachVM, b"", "Something")
        self.assertIn("malformed Something command", str(error))

    @given(st.sampled_from(CLASSES), damagedJSON() | st.binary(max_size=60))
    @example(RegisterVM, b'{"containerId":"\\ud800"}')
    def test_anything(self, cls: type, payload: bytes) -> None:
        """P3: any bytes are a payload or BadPayload, never another exception."""
        try:
            decoded: object = decode(cls, payload)
        except BadPayload as error:
            self.assertIn(f"malformed {cls.__name__} command", str(error))
        else:
            encode(decoded)


class SignalTests(PayloadTestCase):
    """L{Signal.check}: which signals have a size."""

    def test_windowSize(self) -> None:
        """SIGWINCH needs columns and rows, neither of them 0."""
        Signal(SIGWINCH, 80, 24).check()
        Signal(SIGWINCH, 1, 65535).check()
        for columns, rows in ((None, None), (80, None), (None, 24), (0, 24), (80, 0), (0, 0)):
            error = self.assertRaises(BadPayload, Signal(SIGWINCH, columns, rows).check)
            self.assertIn("columns", str(error))
            self.assertIn("rows", str(error))

    def test_others(self) -> None:
        """Any other signal has no size; 0 is none."""
        for number in (0, 1, 9, 15, 27, 29, 64):
            for columns, rows in ((None, None), (0, 0), (None, 0)):
                Signal(number, columns, rows).check()
            for columns, rows in ((80, 24), (80, None), (None, 24), (1, 0)):
                error = self.assertRaises(BadPayload, Signal(number, columns, rows).check)
                self.assertIn(str(number), str(error))


class ResponseTests(PayloadTestCase):
    """What the proxy sends."""

    def test_bothSpellings(self) -> None:
        """The URL goes out under both names; without tokens the list is null."""
        self.assertEqual(
            json.loads(encode(IOResponse.make("unix:///s", []))),
            {"io": {"url": "unix:///s", "URL": "unix:///s", "tokens": None}},
        )
        self.assertEqual(
            json.loads(encode(IOResponse.make("unix:///s", ["a", "b"])))["io"]["tokens"],
            ["a", "b"],
        )

    def test_eitherSpelling(self) -> None:
        """Either name of the URL is taken, and a list of tokens that is absent, null or []."""
        for name in ("url", "URL"):
            for tokens in ("", ', "tokens": null', ', "tokens": []'):
                payload = f'{{"io": {{"{name}": "unix:///s"{tokens}}}}}'
                response = decode(IOResponse, payload.encode())
                self.assertEqual(getattr(response.io, name), "unix:///s")
                self.assertFalse(response.io.tokens)
        self.assertIs(decode(IOResponse, b"{}").io.url, UNSET)

    def test_roundTrip(self) -> None:
        """Our own responses can be read by our own client."""
        for response in (IOResponse.make("unix:///s", ["t"]), ErrorResponse('no "good"\n')):
            self.assertEqual(decode(type(response), encode(response)), response)
