"""
The table of what can be asked of the admin socket, and told it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from typing import Any

import attrs

from ..core.limits import Limits
from . import views
from .api import Api
from .calls import EVENTS, JSON, OCTETS, TEXT, Call, Refused, Reply, Stream
from .profiling import ProfileRequest, ProfileState


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
    @ivar status: the status of the answer.
    @ivar also: other statuses that the same answer may have, and what they mean.
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
    also: Mapping[int, str] = attrs.field(factory=dict)
    refusals: Mapping[int, str] = attrs.field(factory=dict)
    status: int = 200

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
        body=views.LogLevelWanted,
        refusals={**_BAD_BODY, 409: "The log is not the daemon's own."},
    ),
    Route(
        "GET",
        "/v1/events",
        "What happens, as server-sent events, without an end",
        Api.listen,
        type=EVENTS,
        query=(
            Parameter("event", "Names of the events that are wanted, with commas between them"),
            Parameter("vm", "The name of the VM whose events are wanted"),
        ),
        refusals={
            400: "No event has such a name.",
            503: "There are too many listeners.",
        },
    ),
    Route(
        "GET",
        "/v1/vms/{serial}/console",
        "What a VM's console has said last, as it stands",
        Api.console,
        type=OCTETS,
        query=(Parameter("follow", "1: and what it says from now on", "boolean"),),
        refusals={**_NO_VM, 400: "The serial is no number, or follow is neither 0 nor 1."},
    ),
    Route(
        "POST",
        "/v1/drain",
        "Take no new VMs, or take them again",
        Api.drain,
        views.Draining,
        body=views.Draining,
        refusals=_BAD_BODY,
    ),
    Route(
        "POST",
        "/v1/stop",
        "End the daemon in order, as SIGTERM does",
        Api.stop,
        views.Stopping,
        status=202,
    ),
    Route(
        "POST",
        "/v1/join",
        "Serve a pod on the listening socket whose descriptor comes with the request",
        Api.join,
        views.Joining,
        body=views.Joining,
        refusals={**_BAD_BODY, 409: "No descriptor came, or none of such a socket."},
    ),
    Route(
        "POST",
        "/v1/restart",
        "Hand over to a successor, without closing a connection",
        Api.restartDaemon,
        views.Restarting,
        status=202,
        refusals={
            409: "Nobody keeps the connections meanwhile, or the successor could not start with its"
            " configuration."
        },
    ),
    Route(
        "POST",
        "/v1/profile/start",
        "Begin a profile",
        Api.startProfile,
        ProfileState,
        body=ProfileRequest,
        refusals={**_BAD_BODY, 409: "One is being made, or profiles are off."},
    ),
    Route(
        "POST",
        "/v1/profile/stop",
        "End the profile",
        Api.stopProfile,
        ProfileState,
        refusals={409: "None was begun, or profiles are off."},
    ),
    Route(
        "GET",
        "/v1/profile",
        "The profile: for pstats if its kind is calls, as folded stacks if it is samples",
        Api.profile,
        type=OCTETS,
        refusals={404: "There is none.", 409: "It is being made, or profiles are off."},
    ),
    Route(
        "GET",
        "/healthz",
        "Whether the daemon works",
        Api.healthz,
        views.Health,
        also={503: "It does not: the answer says what is wrong"},
    ),
    Route("GET", "/metrics", "The metrics, for Prometheus", Api.page, type=TEXT),
    Route("GET", "/openapi.json", "What can be asked: this document", Api.openAPI, dict),
)


def responder(api: Api, only: Collection[str] = ()) -> Callable[[str, str, Call], Reply | Stream]:
    """
    What answers calls.

    @param only: the paths that can be asked for, if not all.
    """
    routes = [route for route in ROUTES if not only or route.path in only]
    return partial(respond, api, routes)


def respond(
    api: Api, routes: Iterable[Route], method: str, path: str, call: Call
) -> Reply | Stream:
    """
    Answer a call.

    @param routes: what can be asked.
    @param method: the HTTP method.
    @param path: the path, unquoted.
    @raise Refused: there is nothing to answer.
    """
    allowed = []
    for route in routes:
        parameters = route.match(path)
        if parameters is None:
            continue
        if route.method == method:
            answer = route.respond(api, attrs.evolve(call, path=parameters))
            ready = isinstance(answer, Reply) or not attrs.has(type(answer))
            return answer if ready else Reply.json(answer)
        allowed.append(route.method)
    if not allowed:
        raise Refused(404, f"there is no {path[:128]}; /openapi.json says what there is")
    if "GET" in allowed:
        allowed.append("HEAD")
    return attrs.evolve(
        Reply.refusing(Refused(405, f"{path[:128]} takes {', '.join(allowed)} only")),
        headers={"Allow": ", ".join(allowed)},
    )
