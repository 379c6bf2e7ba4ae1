"""
What the daemon and whoever starts it again have agreed on.
"""

from __future__ import annotations

#: The exit status of a daemon that has handed everything over, and shall be started again.
HANDED_OVER = 75
#: The variable by which a supervisor tells the daemon to keep its descriptors.
KEEP_VARIABLE = "CCPROXY_KEEP_DESCRIPTORS"
#: Descriptors that the daemon, and a supervisor, need beside those that are kept over a restart:
#: of RLIMIT_NOFILE, this many are not for keeping.
WORKING_DESCRIPTORS = 64
