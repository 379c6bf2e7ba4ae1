"""
What the daemon and whoever starts it again have agreed on.
"""

from __future__ import annotations

#: The exit status of a daemon that has handed everything over, and shall be started again.
HANDED_OVER = 75
#: The variable by which a supervisor tells the daemon to keep its descriptors.
KEEP_VARIABLE = "CCPROXY_KEEP_DESCRIPTORS"
