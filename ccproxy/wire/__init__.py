"""
Pure bytes: the client protocol's frames and payloads, and the agent's two channels.

Nothing here knows of sockets, clocks or reactors. Byte tables are in C{docs/protocol}.
"""
