"""Words on a terminal: one file a command. Nothing imports this package."""

import signal

# Before numpy's threads are there, which would take it: its default ends a process that does not listen yet. Ranks
# inherit this from the launcher, and listen in train/watch/signals.py.
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
