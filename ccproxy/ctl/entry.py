"""
The entry points of the commands C{cc-proxy} and C{ccproxyctl}.

Both hold back the signals that must not kill a starting daemon before they import anything else.
"""

from __future__ import annotations

from ..service.earlysignals import hold


def ccProxy() -> int:
    """Run C{cc-proxy}; return its exit status."""
    hold()
    from ..service.ccproxy_command import main

    return main()


def ccproxyctl() -> int:
    """Run C{ccproxyctl}; return its exit status."""
    hold()
    from .ccproxyctl import main

    return main()
