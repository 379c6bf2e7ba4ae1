"""
ccproxy: the proxy between container runtimes and the agents inside lightweight VMs.

The rooms of the package, from the pure inside to the outside world, are described in
C{docs/architecture}: L{ccproxy.wire}, L{ccproxy.core}, L{ccproxy.net}, L{ccproxy.agent},
L{ccproxy.service} and L{ccproxy.tools}.
"""

from __future__ import annotations

__version__ = "0.1.0"
