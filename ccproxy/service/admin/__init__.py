"""
The admin socket: what an operator can ask the running daemon, and tell it, in HTTP and JSON.

Only L{ccproxy.service.admin.service} is imported when the daemon starts; the rest is at the first
connection.
"""
