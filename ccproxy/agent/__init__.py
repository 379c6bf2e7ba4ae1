"""
The embedded agent: the in-VM agent's side of the control and I/O channels, without a VM.

It starts real processes B{on this machine, as this user, with no isolation at all}: no
namespaces, no root file system of their own, no limits. It serves trying out, developing and
testing the proxy where there is no hypervisor. Who can reach its sockets can run anything that
the daemon's user can.

L{ccproxy.agent.payloads} reads the commands' data as each dialect does, L{ccproxy.agent.agent}
and L{ccproxy.agent.commands} answer them, L{ccproxy.agent.machine} and
L{ccproxy.agent.programs} start the processes, L{ccproxy.agent.protocols} speaks over any
transport, and L{ccproxy.agent.service} listens on two UNIX sockets.
"""
