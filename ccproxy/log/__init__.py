"""The log: formats, rate limits, and sinks that never make the daemon wait."""
