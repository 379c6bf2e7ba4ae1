"""
Twisted: transports, the Protocols of both sides, connecting to VMs, and the client library.
"""
