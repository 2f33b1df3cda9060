"""The process of `lmms`, which is also `python -m lmms.cli`."""

import signal


def main() -> None:
    """Entry point of the console script."""
    # Before numpy starts threads, which would take the signal: its default ends a process without a handler. Ranks
    # inherit the blocked signal from the launcher of `lmms train`, and listen for the signal in signals().
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    from lmms.cli.main import main

    main()


if __name__ == "__main__":
    main()
