Output is translated in place, run by run, and stdin is taken in runs: bulk streams cost a small part of the processor time that they took frame by frame.
