"""
The benchmark: what the proxy costs for each frame, keystroke, command and VM, beside what a plain
relay of the same bytes costs on the same machine in the same run.

C{make bench} runs it, and C{make bench-check} compares its ratios with those of C{bounds.toml}.
docs/performance has the method.
"""
