"""
The table of what can be asked of the admin socket, and told it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import attrs

from ...core.limits import Limits
from . import views
from .api import Api
from .calls import JSON, Call, Refused, Reply, Stream


@attrs.frozen
class Parameter:
    """
    A parameter of the query.

    @ivar name: its name.
    @ivar help: what it does.
    @ivar kind: its type in JSON.
    """

    name: str
    help: str
    kind: str = "string"


@attrs.frozen
class Route:
    """
    One thing that can be asked.

    @ivar method: the HTTP method.
    @ivar path: with parameters in braces.
    @ivar summary: what it does.
    @ivar respond: does it.
    @ivar result: the class that the answer is in JSON, or L{None} where it is none.
    @ivar type: the answer's media type.
    @ivar body: the class that the request's body has to be, or L{None} where it has none.
    @ivar query: the parameters of the query.
    @ivar refusals: the statuses with which it may refuse, and why.
    """

    method: str
    path: str
    summary: str
    respond: Callable[[Api, Call], Any]
    result: Any = None
    type: str = JSON
    body: Any = None
    query: tuple[Parameter, ...] = ()
    refusals: Mapping[int, str] = attrs.field(factory=dict)

    def match(self, path: str) -> Mapping[str, str] | None:
        """The parameters in C{path}, or L{None} if it is another's."""
        found = re.fullmatch(re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", self.path), path)
        return None if found is None else found.groupdict()


_NO_VM = {400: "The serial is no number.", 404: "There is no VM of that serial."}
_NO_CLIENT = {400: "The number is none.", 404: "There is no client of that number."}
_BAD_BODY = {400: "The body is not what is expected."}

ROUTES = (
    Route("GET", "/v1/status", "The daemon", Api.status, views.Status),
    Route("GET", "/v1/limits", "Its bounds and deadlines", Api.limits, Limits),
    Route("GET", "/v1/vms", "All VMs", Api.vms, list[views.VMView]),
    Route("GET", "/v1/vms/{serial}", "One VM", Api.vm, views.VMView, refusals=_NO_VM),
    Route(
        "DELETE",
        "/v1/vms/{serial}",
        "Forget a lost VM",
        Api.forget,
        views.VMView,
        refusals={**_NO_VM, 409: "The VM is not lost."},
    ),
    Route(
        "GET",
        "/v1/sessions",
        "All sessions",
        Api.sessions,
        list[views.SessionView],
        query=(Parameter("vm", "Those of VMs of this name only"),),
    ),
    Route("GET", "/v1/clients", "All clients", Api.clients, list[views.ClientView]),
    Route(
        "DELETE",
        "/v1/clients/{number}",
        "Close a client's connection",
        Api.drop,
        views.ClientView,
        refusals=_NO_CLIENT,
    ),
    Route(
        "GET",
        "/v1/commands",
        "The commands that are not answered, the oldest first",
        Api.commands,
        list[views.CommandView],
    ),
    Route("GET", "/v1/dump", "Everything", Api.dump, views.Dump),
    Route("GET", "/v1/loglevel", "The log level", Api.logLevel, views.LogLevel),
    Route(
        "PUT",
        "/v1/loglevel",
        "Set the log level",
        Api.setLogLevel,
        views.LogLevel,
        body=views.LogLevel,
        refusals={**_BAD_BODY, 409: "The log is not the daemon's own."},
    ),
    Route(
        "GET",
        "/healthz",
        "Whether the daemon works",
        Api.healthz,
        views.Health,
        refusals={503: "It does not: the answer says what is wrong."},
    ),
)


def respond(api: Api, method: str, path: str, call: Call) -> Reply | Stream:
    """
    Answer a call.

    @param method: the HTTP method.
    @param path: the path, unquoted.
    @raise Refused: there is nothing to answer.
    """
    allowed = []
    for route in ROUTES:
        parameters = route.match(path)
        if parameters is None:
            continue
        if route.method == method:
            answer = route.respond(api, attrs.evolve(call, path=parameters))
            return (
                Reply.json(answer)
                if route.type == JSON and not isinstance(answer, Reply)
                else answer
            )
        allowed.append(route.method)
    if not allowed:
        raise Refused(404, f"there is no {path[:128]}; /openapi.json says what there is")
    if "GET" in allowed:
        allowed.append("HEAD")
    return attrs.evolve(
        Reply.refusing(Refused(405, f"{path[:128]} takes {', '.join(allowed)} only")),
        headers={"Allow": ", ".join(allowed)},
    )
