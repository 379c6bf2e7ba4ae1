"""The daemon: its services and their ordered stop, pods, KSM, and its two command lines."""
