"""
ccproxy: the proxy between container runtimes and the agents inside lightweight VMs.

Each folder of the package has one concern and imports only from folders above it in the list of
C{docs/architecture}.
"""

from __future__ import annotations

__version__ = "0.1.0"
