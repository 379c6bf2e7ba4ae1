"""
Tells C{twistd} of ccproxy, by name: nothing of ccproxy is imported before it is asked for.
"""

from __future__ import annotations

from twisted.application.reactors import Reactor
from twisted.application.service import ServiceMaker

ccproxy = ServiceMaker(
    "ccproxy",
    "ccproxy.service.making",
    "The proxy between container runtimes and the agents inside lightweight VMs.",
    "ccproxy",
)

reactor = Reactor(
    "ccproxy",
    "ccproxy.net.reactor",
    "epoll(7), with the least work for each event of ccproxy: twistd --reactor=ccproxy ccproxy",
)
