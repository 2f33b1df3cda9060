"""Words on a terminal: one module for each command. No other package imports this package."""

import signal

# Before numpy starts threads, which would take the signal: its default ends a process without a handler. Ranks inherit
# the blocked signal from the launcher, and listen for the signal in signals().
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
