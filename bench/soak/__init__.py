"""
The soak: the real daemon with hundreds of VMs and shims that come and go, for as long as wanted.

Every byte is checked where it arrives, and at the end nothing may be left in the daemon.
C{make soak TIME=1200} runs it.
"""
