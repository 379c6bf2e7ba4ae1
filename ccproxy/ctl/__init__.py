"""
C{ccproxyctl}: one module for each command, and the supervisor.

L{ccproxy.ctl.ccproxyctl} finds the module of a command.
"""
