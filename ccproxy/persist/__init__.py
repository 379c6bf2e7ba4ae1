"""State that outlives a process: planned restarts, the crash journal, the descriptor store."""
