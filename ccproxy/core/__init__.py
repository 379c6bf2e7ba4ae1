"""
Pure state: what the proxy knows of VMs, sessions and clients, and what it decides.

Bytes in, bytes and actions out, through the interfaces of L{ccproxy.interfaces}. No reactor, no
sockets; the clock is a parameter.
"""
