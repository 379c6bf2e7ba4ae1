"""
Records: how objects of the core are written down, and read back by another process.

Each attribute of a recorded class says how it persists: as it is, as an age, as a place in a table,
as the time that is left of a wait, as a part with attributes of its own, or not at all. From these
declarations L{formOf} makes the form of the class once: a L{msgspec.Struct}, which has the types
and bounds of what is written. So a new attribute costs one line.

What is read may have been written by another version: keys that it does not know are ignored, and
what is missing has its default.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from operator import attrgetter
from typing import Annotated, Any, Optional, Protocol, get_type_hints

import attrs
import msgspec

from .context import Wait

#: How many of something.
Count = Annotated[int, msgspec.Meta(ge=0)]
#: A place in the table of clients, VMs, sessions, slots or commands.
Place = Count
#: In how many seconds something is due. What is no number would stop all clocks.
Left = Annotated[float, msgspec.Meta(ge=0, le=1e300)]
#: How many seconds ago something was; less than none if the clock was put back.
Ago = Annotated[float, msgspec.Meta(ge=-1e300, le=1e300)]


class Writer(Protocol):
    """
    What writes objects down.

    @ivar crash: whether it writes for a crash: what is on its way dies with this process.
    """

    @property
    def crash(self) -> bool: ...

    def place(self, table: str, thing: Any) -> Place | None:
        """Return the place of a thing in a table, or L{None} for L{None}."""

    def key(self, connection: Any) -> Count | None:
        """Return what names a connection outside of the core, or L{None} for L{None}."""

    def ago(self, moment: float) -> float:
        """Return for how many seconds a moment is past."""

    def left(self, wait: Wait | None) -> float | None:
        """Return in how many seconds a wait is due, or L{None} if it is over."""


class Reader(Protocol):
    """What reads objects."""

    @property
    def now(self) -> float:
        """The time, in seconds of the clock."""

    def thing(self, table: str, place: Place | None) -> Any:
        """
        Return what is at a place of a table, or L{None} for L{None}.

        @raise LookupError: nothing is there.
        """

    def moment(self, ago: float) -> float:
        """Return a moment that was so many seconds before the writing."""

    def left(self, left: float, grace: float = 0.0) -> float:
        """
        Return the seconds that are left now of those that were left at the writing.

        @param grace: how many there are at least after a crash.
        """

    def later(self, delay: float, action: Callable[[], object]) -> Wait:
        """Call an action in so many seconds."""


@attrs.frozen(kw_only=True)
class Kind:
    """
    How an attribute persists; this is one that is written as it is.

    @ivar key: its name in the form; by default that of the attribute.
    @ivar type: its type in the form; by default that of the attribute.
    @ivar crash: whether it is written for a crash, too.
    """

    key: str = ""
    type: Any = None
    crash: bool = True

    def changes(self) -> bool:
        """Return whether what is written is not the value itself."""
        return not self.crash

    def write(self, value: Any, writer: Writer) -> Any:
        """Return what is written of a value."""
        return value

    def value(self, written: Any, reader: Reader) -> Any:
        """Return the value that was written."""
        return written

    def read(self, owner: Any, name: str, written: Any, reader: Reader) -> None:
        """Give the owner what was written of its attribute."""
        setattr(owner, name, self.value(written, reader))


class _Changed(Kind):
    """A kind that writes something else than the value."""

    def changes(self) -> bool:
        return True


@attrs.frozen(kw_only=True)
class _Moment(_Changed):
    type: Any = Ago

    def write(self, value: Any, writer: Writer) -> Any:
        return writer.ago(value)

    def value(self, written: Any, reader: Reader) -> Any:
        return reader.moment(written)


@attrs.frozen(kw_only=True)
class _Reference(_Changed):
    type: Any = Optional[Place]
    table: str = ""

    def write(self, value: Any, writer: Writer) -> Any:
        return writer.place(self.table, value)

    def value(self, written: Any, reader: Reader) -> Any:
        return reader.thing(self.table, written)


@attrs.frozen(kw_only=True)
class _Converted(_Changed):
    toForm: Callable[[Any], Any]
    toValue: Callable[[Any], Any]

    def write(self, value: Any, writer: Writer) -> Any:
        return self.toForm(value)

    def value(self, written: Any, reader: Reader) -> Any:
        return self.toValue(written)


@attrs.frozen(kw_only=True)
class _References(_Changed):
    type: Any = list[Place]
    table: str = ""

    def write(self, value: Any, writer: Writer) -> Any:
        return [writer.place(self.table, each) for each in value]

    def read(self, owner: Any, name: str, written: Any, reader: Reader) -> None:
        getattr(owner, name).extend(reader.thing(self.table, place) for place in written)


class _Nested(_Changed):
    def write(self, value: Any, writer: Writer) -> Any:
        return write(value, writer)

    def read(self, owner: Any, name: str, written: Any, reader: Reader) -> None:
        read(getattr(owner, name), written, reader)


@attrs.frozen(kw_only=True)
class _Timer(_Changed):
    type: Any = Optional[Left]
    action: str = ""
    grace: float = 0.0

    def write(self, value: Any, writer: Writer) -> Any:
        return writer.left(value)

    def read(self, owner: Any, name: str, written: Any, reader: Reader) -> None:
        if written is not None:
            left = reader.left(written, self.grace)
            setattr(owner, name, reader.later(left, getattr(owner, self.action)))


@attrs.frozen(kw_only=True)
class _Custom(_Changed):
    default: Any
    toWrite: Callable[[Any, Writer], Any]
    toRead: Callable[[Any, Any, Reader], object]

    def write(self, value: Any, writer: Writer) -> Any:
        return self.toWrite(value, writer)

    def read(self, owner: Any, name: str, written: Any, reader: Reader) -> None:
        self.toRead(getattr(owner, name) if name else owner, written, reader)


class _Part(Kind):
    pass


class _Transient(Kind):
    pass


def _field(kind: Kind, **options: Any) -> Any:
    return attrs.field(metadata={"record": kind}, **options)


def saved(
    default: Any = attrs.NOTHING,
    *,
    factory: Callable[[], Any] | None = None,
    key: str = "",
    type: Any = None,
    crash: bool = True,
    init: bool = True,
) -> Any:
    """
    Declare an attribute that is written as it is.

    @param key: its name in the form, if that is not the attribute's.
    @param type: its type in the form, if that is not the attribute's: one with bounds.
    @param crash: whether it is written for a crash, too.
    """
    made = attrs.Factory(factory) if factory is not None else default
    return _field(Kind(key=key, type=type, crash=crash), default=made, init=init)


def converted(
    key: str, type: Any, toForm: Callable[[Any], Any], toValue: Callable[[Any], Any]
) -> Any:
    """
    Declare an attribute whose value is written in another form.

    @param type: the type of that form.
    """
    return _field(_Converted(key=key, type=type, toForm=toForm, toValue=toValue))


def moment(default: Any = attrs.NOTHING, *, key: str = "", init: bool = True) -> Any:
    """Declare a moment of the clock, which is written as an age in seconds."""
    return _field(_Moment(key=key), default=default, init=init)


def reference(
    table: str,
    default: Any = attrs.NOTHING,
    *,
    key: str = "",
    crash: bool = True,
    init: bool = True,
) -> Any:
    """
    Declare a reference to another object, which is written as its place in a table.

    @param table: the table.
    @param crash: whether it is written for a crash, too.
    """
    of: Any = Place if default is attrs.NOTHING else Optional[Place]
    kind = _Reference(key=key, type=of, crash=crash, table=table)
    return _field(kind, default=default, init=init)


def references(table: str, *, key: str = "") -> Any:
    """
    Declare a list of other objects, which are written as their places in a table.

    @param table: the table.
    """
    return _field(_References(key=key, table=table), default=attrs.Factory(list), init=False)


def timer(action: str, *, key: str, grace: float = 0.0) -> Any:
    """
    Declare a wait, which is written as the seconds that are left of it.

    @param action: the name of the owner's method that is called.
    @param grace: seconds that it has at least after a crash.
    """
    return _field(_Timer(key=key, action=action, grace=grace), default=None, init=False)


def custom(
    key: str,
    type: Any,
    default: Any,
    toWrite: Callable[[Any, Writer], Any],
    toRead: Callable[[Any, Any, Reader], object],
) -> Any:
    """
    Declare an object of another class that no other kind describes.

    @param type: its type in the form.
    @param default: what an older form has; a function makes it.
    @param toWrite: returns what is written, of the object and the writer.
    @param toRead: takes the object, what was written of it, and the reader.
    """
    return _field(derived(key, type, default, toWrite, toRead), init=False)


def derived(
    key: str,
    type: Any,
    default: Any,
    toWrite: Callable[[Any, Writer], Any],
    toRead: Callable[[Any, Any, Reader], object] = lambda *_: None,
) -> Kind:
    """
    Declare what is written of an object and is no attribute of it, for the C{DERIVED} of its class.

    @param toWrite: returns what is written, of the object and the writer.
    @param toRead: takes the object, what was written, and the reader.
    """
    return _Custom(key=key, type=type, default=default, toWrite=toWrite, toRead=toRead)


def part() -> Any:
    """Declare an object whose attributes are written as if they were the owner's."""
    return _field(_Part(), init=False)


def nested() -> Any:
    """Declare an object that has a form of its own in that of the owner."""
    return _field(_Nested(), init=False)


def transient(default: Any = attrs.NOTHING, **options: Any) -> Any:
    """Declare what is not written: another process makes it anew."""
    return _field(_Transient(), default=default, **options)


@attrs.frozen
class _Recorded:
    """
    What is written of an object.

    @ivar path: the attributes that lead to the owner from the object on, with dots.
    @ivar name: the owner's attribute, or nothing if it is none.
    @ivar default: its value where a form has none.
    """

    path: str
    name: str
    key: str
    kind: Kind
    type: Any
    default: Any


@attrs.frozen
class _Plan:
    """
    How a class is written and read.

    @ivar form: its form.
    @ivar values: returns the attributes that are written, in the order of the form.
    @ivar changes: the places in it of those that are not written as they are.
    @ivar owners: what is behind the attributes, with what returns its owner.
    @ivar all: all that is written, in the order in which it is read.
    """

    form: Any
    values: Callable[[Any], tuple[Any, ...]]
    changes: list[tuple[int, _Recorded]]
    owners: list[tuple[Callable[[Any], Any], Kind]]
    all: list[tuple[Callable[[Any], Any], _Recorded]]


def _hint(cls: type, name: str) -> Any:
    """Return the type of an attribute. Those of others may be none that typing understands."""
    owner = next(each for each in cls.__mro__ if name in vars(each).get("__annotations__", ()))
    alone = {"__annotations__": {name: owner.__annotations__[name]}, "__module__": owner.__module__}
    return get_type_hints(type("", (), alone), include_extras=True)[name]


def _recorded(cls: type, path: str) -> Iterator[_Recorded]:
    for each in attrs.fields(cls):
        kind = each.metadata.get("record")
        if kind is None:
            raise TypeError(f"{cls.__name__}.{each.name} does not say how it persists")
        if isinstance(kind, _Part):
            yield from _recorded(_hint(cls, each.name), f"{path}{each.name}.")
        elif not isinstance(kind, _Transient):
            key = kind.key or each.name.lstrip("_")
            of = _hint(cls, each.name) if kind.type is None else kind.type
            default = kind.default if isinstance(kind, _Custom) else each.default
            if isinstance(kind, _Nested):
                default = of = formOf(of)
            yield _Recorded(path, each.name, key, kind, of, default)
    for kind in getattr(cls, "DERIVED", ()):
        yield _Recorded(path, "", kind.key, kind, kind.type, kind.default)


@cache
def _plan(cls: Any) -> _Plan:
    found = list(_recorded(cls, ""))
    attributes = [each for each in found if each.name]
    attributes.sort(key=lambda each: each.default is not attrs.NOTHING)  # as msgspec wants it
    others = [each for each in found if not each.name]
    fields: list[Any] = [
        (each.key, each.type, *_structDefault(each.default)) for each in [*attributes, *others]
    ]
    tag: Any = {"tag": cls.TAG, "tag_field": "kind"} if hasattr(cls, "TAG") else {}
    return _Plan(
        msgspec.defstruct(f"{cls.__name__}Form", fields, module=__name__, **tag),
        attrgetter(*(each.path + each.name for each in attributes)),
        [(at, each) for at, each in enumerate(attributes) if each.kind.changes()],
        [(_ownerOf(each), each.kind) for each in others],
        [(_ownerOf(each), each) for each in found],
    )


def _ownerOf(recorded: _Recorded) -> Callable[[Any], Any]:
    return attrgetter(recorded.path[:-1]) if recorded.path else lambda thing: thing


def _structDefault(default: Any) -> tuple[Any, ...]:
    if default is attrs.NOTHING:
        return ()
    factory = getattr(default, "factory", default)  # of an attribute, or given as it is
    return (msgspec.field(default_factory=factory) if callable(factory) else default,)


def formOf(cls: Any) -> Any:
    """
    Return the form of a recorded class: a L{msgspec.Struct}.

    Forms of classes that stand beside each other in a list tell their C{TAG} as C{kind}.
    """
    return _plan(cls).form


def write(thing: Any, writer: Writer) -> Any:
    """Write an object down: return its form."""
    cls: Any = type(thing)
    plan = _plan(cls)
    values = list(plan.values(thing))
    for at, each in plan.changes:
        if each.kind.crash or not writer.crash:
            values[at] = each.kind.write(values[at], writer)
        else:
            values[at] = each.default
    values.extend([kind.write(ownerOf(thing), writer) for ownerOf, kind in plan.owners])
    return plan.form(*values)


def make(cls: Any, form: Any, reader: Reader) -> Any:
    """
    Make an object of a class of which all that its maker takes is written. L{read} must follow,
    once there is all that it refers to.
    """
    given = {
        each.name.lstrip("_"): each.kind.value(getattr(form, each.key), reader)
        for _, each in _plan(cls).all
        if each.name and getattr(attrs.fields(cls), each.name).init
    }
    return cls(**given)


def read(thing: Any, form: Any, reader: Reader) -> None:
    """Give an object what another process has written of it."""
    cls: Any = type(thing)
    for ownerOf, each in _plan(cls).all:
        each.kind.read(ownerOf(thing), each.name, getattr(form, each.key), reader)
