"""
The shim: one process on the host that stands for one process in a VM.

L{ccproxy.shim.attending} connects the process to its local ends: L{ccproxy.shim.stdio},
L{ccproxy.shim.terminal} and L{ccproxy.shim.signals}.
"""
