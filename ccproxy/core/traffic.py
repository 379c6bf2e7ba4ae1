"""
How much has gone through.
"""

from __future__ import annotations

import attrs


@attrs.define(eq=False, weakref_slot=False)
class Traffic:
    """
    What one VM has had since it was registered, headers included.

    Each chunk is counted as a whole, so that counting costs nothing that can be measured.

    @ivar outFrames: messages with output, from the agent to shims.
    @ivar outBytes: their bytes.
    @ivar inFrames: messages with stdin, to the agent.
    @ivar inBytes: their bytes.
    """

    outFrames: int = 0
    outBytes: int = 0
    inFrames: int = 0
    inBytes: int = 0
