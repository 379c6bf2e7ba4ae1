"""
Every exception that ccproxy raises on purpose, as one tree.

L{RemoteProtocolError} is the peer's fault and carries the text to answer it with;
L{LocalProtocolError} is a bug of ours; the others say which rule of the proxy a request broke.
The shell that catches them decides alone between an answer and the end of the connection.
"""

from __future__ import annotations


class CCProxyError(Exception):
    """The root of the tree. C{str()} of it is a text that can be shown to a person."""


class LocalProtocolError(CCProxyError):
    """Our own code asked for something that the protocol does not allow."""


class RemoteProtocolError(CCProxyError):
    """
    A peer sent bytes that the protocol does not allow.

    @ivar opcode: the opcode to answer with, or L{None} if no answer can be sent, because the
        bytes cannot be taken for a command.
    """

    def __init__(self, message: str, opcode: int | None = None) -> None:
        super().__init__(message)
        self.opcode = opcode


class RequestError(CCProxyError):
    """A command cannot be carried out; its sender gets the text as an error response."""


class BadPayload(RequestError):
    """The payload of a command is not what the protocol asks for."""


class RegistryError(RequestError):
    """A command does not fit what is registered."""


class UnknownVM(RegistryError):
    """No VM is registered under this containerId."""

    def __init__(self, containerId: str) -> None:
        super().__init__(f"unknown containerID: {containerId}")


class AlreadyRegistered(RegistryError):
    """The containerId is taken."""

    def __init__(self, containerId: str) -> None:
        super().__init__(f"{containerId}: container already registered")


class NotAttached(RegistryError):
    """The client has neither registered nor attached to a VM."""

    def __init__(self) -> None:
        super().__init__("client not attached to a vm")


class NotAShim(RegistryError):
    """The command is for shims only."""

    def __init__(self) -> None:
        super().__init__("client isn't a shim")


class LimitReached(RegistryError):
    """A configured limit forbids one more."""


class UnknownHyperName(RequestError):
    """The hyperName is none that the agent's dialect has."""


class DeadlineExceeded(RequestError):
    """What the command waited for did not happen in time."""


class VMGone(RequestError):
    """The VM has been lost, or is being unregistered, while the command needed it."""


class InternalError(RequestError):
    """An unexpected exception has cut the command short; the log has the traceback."""

    def __init__(self) -> None:
        super().__init__("internal error of the proxy; its log says more")


class AgentError(RequestError):
    """
    The agent answered a command with ERROR.

    @ivar text: what the agent said; often empty.
    """

    def __init__(self, text: str) -> None:
        super().__init__(f"ERROR received from VM agent, control msg received : {text}")
        self.text = text


class ProxyError(CCProxyError):
    """
    For users of the client library: the proxy answered a command with an error response.

    C{str()} of it is the proxy's text.
    """


class ConnectionClosed(CCProxyError):
    """For users of the client library: the connection ended before the answer came."""
