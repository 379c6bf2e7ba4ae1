"""
What people run beside the daemon: C{ccproxyctl}, its commands, and the shim.

L{ccproxy.tools.ccproxyctl} finds the command. L{ccproxy.tools.attending} is the shim that
C{shim}, C{run} and C{exec} share; L{ccproxy.tools.stdio}, L{ccproxy.tools.terminal} and
L{ccproxy.tools.signals} are the local ends that it ties to the process in the VM.
"""
