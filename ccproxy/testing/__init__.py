"""
Doubles for tests of ccproxy, and of what is built on it.

L{agent} is a scriptable agent, L{client} a plain blocking client, L{daemon} runs the real daemon
in a folder of its own, and L{strategies} makes bytes, frames and payloads for hypothesis.
Only the last needs hypothesis; none of them runs a reactor.
"""
