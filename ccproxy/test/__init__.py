"""
The tests of ccproxy.
"""

from __future__ import annotations

import os
import signal
import tempfile
from contextlib import suppress

# Tests have sockets in temporary folders, and the path of one has no more than 107 bytes.
if len(os.fsencode(tempfile.gettempdir())) > 40:
    tempfile.tempdir = "/tmp"

# A runner in the background ignores signals, and so would every process that a test starts.
for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
    if signal.getsignal(number) is signal.SIG_IGN:
        default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        signal.signal(number, default)

# The units' tests run where ccproxy is installed, which has no hypothesis.
with suppress(ImportError):
    from hypothesis import HealthCheck, settings

    # No deadlines: how long an example takes is the machine's doing, and no promise.
    settings.register_profile(
        "ccproxy", deadline=None, suppress_health_check=[HealthCheck.too_slow]
    )
    settings.load_profile("ccproxy")
