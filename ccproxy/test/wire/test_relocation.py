"""
Relocation: the numbers go in, and nothing else changes.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ccproxy.errors import BadPayload, RequestError
from ccproxy.wire.payloads import MAX_ID
from ccproxy.wire.relocation import StartData

SPACES = st.sampled_from(["", " ", "\n", "\t\r "])
#: What relocation and its checks look at; any other key is a stranger's.
KNOWN = {"process", "stdio", "stderr", "id", "args", "terminal", "container"}


def parse(data: bytes, name: str = "newcontainer") -> StartData:
    """The data of a start."""
    return StartData.parse(name, msgspec.Raw(data))


def relocated(data: bytes, name: str = "newcontainer", process: str | None = None) -> bytes:
    """What is sent, with the numbers 7 and 8."""
    return parse(data, name).render(7, 8, process)


@st.composite
def spaced(draw: st.DrawFn, value: Any) -> str:
    """A JSON text of C{value}, with white space and perhaps with escapes."""
    separators = (f"{draw(SPACES)},{draw(SPACES)}", f"{draw(SPACES)}:{draw(SPACES)}")
    return json.dumps(value, ensure_ascii=draw(st.booleans()), separators=separators)


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(-9, 9) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)
STRANGE_KEYS = TEXTS.filter(lambda key: key.casefold() not in KNOWN)


@st.composite
def members(draw: st.DrawFn, ours: dict[str, Any]) -> list[tuple[str, str]]:
    """Members of an object, keys and texts: some strange ones, perhaps twice, among C{ours}."""
    found = draw(st.lists(st.tuples(STRANGE_KEYS, VALUES), max_size=3))
    twice = bool(found) and draw(st.booleans())
    if twice:
        found.append((found[0][0], draw(VALUES)))
    found = draw(st.permutations(found + list(ours.items())))
    return [
        (
            key,
            f"{draw(spaced(key))}{draw(SPACES)}:{draw(SPACES)}{draw(spaced(value))}",
        )
        for key, value in found
    ]


class PropertyTests(SynchronousTestCase):
    """All but the numbers is kept byte for byte."""

    @given(st.data())
    def test_everyOtherByteIsKept(self, data: st.DataObject) -> None:
        """Any members, any order, any white space, twice the same key, any Unicode."""
        draw = data.draw
        ours: dict[str, Any] = {"args": ["a", draw(TEXTS)]}
        for key in ("stdio", "stderr"):
            if draw(st.booleans()):
                ours[key] = draw(st.sampled_from([0, None]))
        terminal = draw(st.sampled_from([None, False, True]))
        if draw(st.booleans()):
            ours["terminal"] = terminal
        named = draw(st.booleans())
        if named:
            ours["id"] = draw(TEXTS.filter(bool))
        inner = draw(members(ours))
        outer = draw(members({"id": "c1", "process": None}))
        before, after = draw(SPACES), draw(SPACES)
        text, expected = [], []
        numbers = '"stdio":7' if ours.get("terminal") else '"stdio":7,"stderr":8'
        for key, member in outer:
            if key == "process":
                written = "{" + ",".join(f"{before}{m}{after}" for _, m in inner) + "}"
                kept = "".join(f",{m}" for k, m in inner if k not in ("stdio", "stderr"))
                text.append(f'"process":{written}')
                expected.append(f'"process":{{{numbers}{kept}}}')
            else:
                text.append(member)
                expected.append(member)
        raw = "{" + f"{before},{after}".join(text) + "}"
        wanted = "{" + f"{before},{after}".join(expected) + "}"
        self.assertEqual(relocated(raw.encode()).decode(), wanted)

    @given(st.binary(max_size=40) | VALUES.map(json.dumps).map(str.encode))
    def test_anythingElseIsAnError(self, data: bytes) -> None:
        """P3: whatever a client gives, it is an error or a start."""
        for name in ("newcontainer", "execcmd"):
            try:
                parse(data, name)
            except BadPayload:
                continue
            # It may well be the start of a process without anything.
            self.assertIsInstance(json.loads(data)["process"], dict)

    def test_large(self) -> None:
        """A container with a large environment gets its numbers."""
        value = "x" * 100_000
        text = f'{{"process":{{"args":["a"],"envs":[{{"env":"E","value":"{value}"}}]}},"id":"c"}}'
        self.assertEqual(
            relocated(text.encode()).decode(),
            text.replace('{"args"', '{"stdio":7,"stderr":8,"args"'),
        )


class NumberTests(SynchronousTestCase):
    """The numbers and the id."""

    def test_zeroAndNull(self) -> None:
        """0 and null count as absent, and are replaced."""
        for value in (b"0", b"null"):
            data = b'{"process":{"stdio":%b,"args":["a"],"stderr":%b}}' % (value, value)
            self.assertEqual(relocated(data), b'{"process":{"stdio":7,"stderr":8,"args":["a"]}}')

    def test_filledIn(self) -> None:
        """Numbers that the client chose are refused, and named."""
        for key in ("stdio", "stderr"):
            data = b'{"process":{"args":["a"],"%b":5}}' % key.encode()
            error = self.assertRaises(BadPayload, parse, data)
            self.assertIn(f"process.{key}", str(error))

    def test_terminal(self) -> None:
        """A process with a terminal has no stderr."""
        data = b'{"process":{"terminal":true,"stderr":0,"args":["a"]}}'
        self.assertEqual(relocated(data), b'{"process":{"stdio":7,"terminal":true,"args":["a"]}}')

    def test_id(self) -> None:
        """An id is put in first where it is absent, null or empty."""
        for absent in (b"", b'"id":null,', b'"id":"",'):
            data = b'{"process":{%b"args":["a"]}}' % absent
            self.assertIsNone(parse(data).process)
            self.assertEqual(
                relocated(data, process="7"),
                b'{"process":{"id":"7","stdio":7,"stderr":8,"args":["a"]}}',
            )
        self.assertEqual(parse(b'{"process":{"id":"p","args":["a"]}}').process, "p")

    def test_escapedKeys(self) -> None:
        """A key may be written with escapes."""
        data = b'{"pro\\u0063ess":{"std\\u0069o":0,"args":["a"]}}'
        self.assertEqual(relocated(data), b'{"pro\\u0063ess":{"stdio":7,"stderr":8,"args":["a"]}}')

    def test_strangersNumbers(self) -> None:
        """Only the process's own numbers are written: not those inside other objects."""
        data = (
            b'{"containers":[{"process":{"stdio":5}}],"stdio":9,'
            b'"process":{"args":["a"],"x":{"stdio":6,"process":1}}}'
        )
        self.assertEqual(
            relocated(data),
            data.replace(b'{"args"', b'{"stdio":7,"stderr":8,"args"'),
        )

    def test_emptyProcess(self) -> None:
        """An execcmd without args is the agent's to refuse."""
        self.assertEqual(
            relocated(b'{"process":{}}', "execcmd"), b'{"process":{"stdio":7,"stderr":8}}'
        )

    def test_names(self) -> None:
        """The container is C{id} of newcontainer and C{container} of execcmd."""
        data = b'{"id":"one","container":"two","process":{"args":["a"]}}'
        self.assertEqual(parse(data).container, "one")
        self.assertEqual(parse(data, "execcmd").container, "two")
        self.assertEqual(parse(b'{"id":null,"process":{"args":["a"]}}').container, "")


class RefusalTests(SynchronousTestCase):
    """P3: what is refused, because agents hang or crash on it, or differ on it."""

    def refused(self, data: bytes, name: str = "newcontainer") -> str:
        """The error that C{data} gives."""
        return str(self.assertRaises(BadPayload, parse, data, name))

    def test_noData(self) -> None:
        """A start needs data."""
        error = self.assertRaises(BadPayload, StartData.parse, "execcmd", msgspec.UNSET)
        self.assertEqual(str(error), "execcmd needs data")
        self.assertIn("malformed execcmd", self.refused(b"null", "execcmd"))

    def test_noProcess(self) -> None:
        """Without a process, the agent would hang."""
        for data in (b"{}", b'{"process":null}', b'{"Process":{"args":["a"]}}'):
            for name in ("newcontainer", "execcmd"):
                self.assertIn(f"{name} needs a process", self.refused(data, name))

    def test_noArgs(self) -> None:
        """Without args, the agent would crash."""
        for process in (b"{}", b'{"args":null}', b'{"args":[]}'):
            self.assertIn("args", self.refused(b'{"process":%b}' % process))

    def test_longIds(self) -> None:
        """Ids of containers and processes have at most 1024 characters, as those of VMs."""
        for length, good in ((MAX_ID, True), (MAX_ID + 1, False)):
            id = b"i" * length
            for name, data in (
                ("newcontainer", b'{"id":"%s","process":{"args":["x"]}}' % id),
                ("newcontainer", b'{"process":{"id":"%s","args":["x"]}}' % id),
                ("execcmd", b'{"container":"%s","process":{}}' % id),
            ):
                if good:
                    parse(data, name)
                else:
                    self.assertIn("length <= 1024", self.refused(data, name))

    def test_wrongTypes(self) -> None:
        """The error names the field."""
        for data, path in (
            (b'{"process":[]}', "$.process"),
            (b'{"process":{"args":[1]}}', "$.process.args[0]"),
            (b'{"process":{"args":["a"],"terminal":1}}', "$.process.terminal"),
            (b'{"process":{"args":["a"],"stdio":"0"}}', "$.process.stdio"),
            (b'{"id":1,"process":{"args":["a"]}}', "$.id"),
        ):
            self.assertIn(path, self.refused(data))

    def test_letterCase(self) -> None:
        """Go agents would take such a key for ours; the Kelvin sign and the long s included."""
        for key in (b'"PROCESS"', b'"Process"', b'"proce\\u017fs"'):
            data = b'{"process":{"args":["a"]},%b:{}}' % key
            self.assertIn("which some agents take for 'process'", self.refused(data))
        for key in (b'"Stdio"', b'"STDERR"', b'"\\u017ftdio"'):
            data = b'{"process":{"args":["a"],%b:0}}' % key
            self.assertIn("which some agents take for", self.refused(data))

    def test_twice(self) -> None:
        """One of them twice: agents differ on which counts."""
        process = b'{"args":["a"]}'
        data = b'{"process":%b,"process":%b}' % (process, process)
        self.assertIn("has process twice", self.refused(data))
        data = b'{"process":{"stdio":0,"args":["a"],"std\\u0069o":0}}'
        self.assertIn("has stdio twice", self.refused(data))

    def test_notUTF8(self) -> None:
        """Text that is not UTF-8 is an error, wherever it stands."""
        self.assertIn("malformed", self.refused(b'{"x":"\xff","process":{"args":["a"]}}'))
        self.assertIn("malformed", self.refused(b'{"process":{"args":["\xff"]}}'))

    def test_deep(self) -> None:
        """JSON that is nested too deep is an error."""
        for depth in (900, 5_000, 100_000):
            deep = b"[" * depth + b"]" * depth
            data = b'{"process":{"args":["a"],"x":%b}}' % deep
            try:
                self.assertIn(deep, relocated(data))
            except BadPayload as error:
                self.assertIn("malformed newcontainer", str(error))

    def test_hyperstart0(self) -> None:
        """hyperstart 0.x reads nothing behind a key that it does not know."""
        parse(b'{"process":{"terminal":true,"args":["a"],"id":"x"}}').checkHyperstart0()
        for data in (
            b'{"process":{"id":"x","args":["a"]}}',
            b'{"process":{"envs":[],"capabilities":{},"args":["a"]}}',
        ):
            error = self.assertRaises(RequestError, parse(data).checkHyperstart0)
            self.assertIn("args must come before it", str(error))
        strange = b'{"process":{"%b":1,"args":["a"]}}' % (b"k" * 10_000)
        error = self.assertRaises(RequestError, parse(strange).checkHyperstart0)
        self.assertLess(len(str(error)), 1000)
