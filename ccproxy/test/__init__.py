"""
The tests of ccproxy.
"""

from __future__ import annotations

import os
import tempfile

# Tests have sockets in temporary folders, and the path of one has no more than 107 bytes.
if len(os.fsencode(tempfile.gettempdir())) > 40:
    tempfile.tempdir = "/tmp"
