"""
The admin HTTP API: what an operator can ask the running daemon and tell it.

Only L{ccproxy.admin.service} is imported when the daemon starts; the rest is imported at the first
connection.
"""
