Output is translated in place, run by run, and stdin is taken in runs: a 512-byte frame costs a tenth of what it cost the historic proxy.
