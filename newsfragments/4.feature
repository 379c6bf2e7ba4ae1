Output is translated in place, run by run, and stdin is taken in runs: bulk streams cost a small part of the processor time that they took frame by frame.
``make bench`` measures what a frame, a keystroke, a command and a VM cost, beside plain relays of the same bytes in the same run, and ``make bench-check`` compares that with bounds; what was found is in the documentation.
