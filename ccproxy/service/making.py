"""
What C{twistd} and C{twist} find behind their plugin: the options, and the service that they run.

Only the options are imported before they have been parsed. From the import of this module on the
signals of L{ccproxy.service.earlysignals.HELD} are held back. The service releases them when the
reactor runs.
"""

from __future__ import annotations

from .earlysignals import hold

hold()

from typing import TYPE_CHECKING  # noqa: E402

from ..config.options import Options  # noqa: E402

if TYPE_CHECKING:
    from .running import TwistdService

__all__ = ["Options", "makeService"]


def makeService(options: Options) -> TwistdService:
    """
    Make the service that C{twistd ccproxy} and C{twist ccproxy} run, and for an application of a
    C{.tac} file.

    @param options: the options of the command line, parsed.
    """
    from twisted.internet import reactor

    from .proxy import ProxyService
    from .reload import Reload
    from .running import TwistdService, runnerOptions

    settings = options.settings
    twistd = runnerOptions(options.parent)
    proxy = ProxyService(settings, reactor, options.read)
    reload = Reload(proxy, settings, options.read)
    service = TwistdService(
        proxy, settings, twistd, reactor, reload, proxy.dump, proxy.handOver, proxy.give
    )
    proxy.useLog(service.daemonLog)
    return service
