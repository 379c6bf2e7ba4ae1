"""
What C{twistd} finds behind its plugin: the options, and the service that it runs.

Only the options are imported before they have been parsed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .options import Options

if TYPE_CHECKING:
    from .running import TwistdService

__all__ = ["Options", "makeService"]


def makeService(options: Options) -> TwistdService:
    """
    Make the service that C{twistd ccproxy} runs.

    @param options: what was said on the command line, parsed.
    """
    from twisted.internet import reactor

    from .proxy import ProxyService
    from .reload import Reload
    from .running import TwistdService

    settings = options.settings
    twistd = {} if options.parent is None else options.parent
    proxy = ProxyService(settings, reactor, options.read)
    reload = Reload(proxy, settings, options.read)
    service = TwistdService(
        proxy, settings, twistd, reactor, reload, proxy.dump, proxy.handOver
    )
    proxy.useLog(service.daemonLog)
    return service
