"""tools/faults/run: hit real runs with random faults, and write a page with the results.

tools/faults/run --faults 200 --minutes 30 --seed 0 --report docs/faults.md
"""

import argparse
import os
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from tools.faults.campaign import GLOBAL_PACKS, STEPS, Findings, campaign
from tools.faults.hits import HITS
from tools.faults.page import told


def leftovers(temporary: Path) -> set[str]:
    """Names in the campaign's temporary folder, and names in shared memory that no living process has mapped.

    Other processes may run at the same time: a file that was just made may not be mapped yet, so names are read twice.
    """
    unmapped = _unmapped()
    if unmapped:
        time.sleep(1.0)
        unmapped &= _unmapped()
    return unmapped | {str(path) for path in temporary.glob("*")}


def _unmapped() -> set[str]:
    names = {str(path) for path in Path("/dev/shm").glob("*")}
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with suppress(OSError):  # the process has ended, or belongs to another user
            text = maps.read_text()
            names = {name for name in names if name not in text}
    return names


def report(findings: Findings, seed: int) -> str:
    """The page of a campaign."""
    lines = [
        "# Faults",
        "",
        "Made by `tools/faults/run`: real runs of a small vision model on real gloo ranks, each hit by a random fault",
        "and started again on another number of ranks, loader processes and packs a pass, to its last step.",
        "Then its log has to be that of a run that nothing happened to: every step once, the digest of every step's",
        "packs equal, every loss equal to 1e-5. Shared memory and the temporary folder have to be as before.",
        "",
        f"Seed {seed}: {findings.faults.total()} faults in {findings.runs} runs of {STEPS} steps of {GLOBAL_PACKS}"
        f" packs, with {findings.restarts} restarts, in {findings.seconds / 60:.0f} minutes;",
        f"lives on {', '.join(f'{n} ranks: {findings.worlds[n]}' for n in sorted(findings.worlds))}.",
        f"**{len(findings.wrong) or 'None'} of them lost, repeated or changed a step, hung or left anything behind.**",
        "",
        "| fault | times | what it does |",
        "|---|---|---|",
        *(f"| {kind} | {findings.faults[kind]} | {(hit.__doc__ or '').strip()} |" for kind, hit in HITS.items()),
        *(["", "What went wrong:", "", *(f"- {sentence}" for sentence in findings.wrong)] if findings.wrong else []),
    ]
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Run a campaign and write its page; returns 0 where nothing went wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--report", type=Path, help="write the page here")
    parser.add_argument("--keep", type=Path, help="folder for the runs and their logs; by default they are deleted")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="lmms-faults-") as made:
        folder, temporary = given.keep or Path(made), Path(made) / "tmp"
        folder.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        tempfile.tempdir = os.environ["TMPDIR"] = str(temporary)
        findings = campaign(
            folder,
            given.seed,
            given.faults,
            given.minutes,
            lambda line: print(line, flush=True),
            lambda: leftovers(temporary),
        )
    return told(report(findings, given.seed), given.report, bool(findings.wrong))


if __name__ == "__main__":
    sys.exit(main())
