"""The daemon: services and their ordered stop, the two command lines, settings and the log."""
