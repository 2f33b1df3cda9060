"""tools/faults/run: hit real runs with random faults, and write what came of it.

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

ROOT = Path(__file__).resolve().parents[2]


def leftovers(temporary: Path) -> set[str]:
    """Names in the campaign's temporary folder, and in shared memory those that no living process has mapped.

    Others may run beside the campaign: what a process has just made may not be mapped yet, so it is looked at again.
    """
    found = _unmapped()
    if found:
        time.sleep(1.0)
        found &= _unmapped()
    return found | {str(path) for path in temporary.glob("*")}


def _unmapped() -> set[str]:
    names = {str(path) for path in Path("/dev/shm").glob("*")}
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with suppress(OSError):  # it has ended, or is somebody else's
            text = maps.read_text()
            names = {name for name in names if name not in text}
    return names


def report(found: Findings, seed: int) -> str:
    """The page of a campaign."""
    lines = [
        "# Faults",
        "",
        "Made by `tools/faults/run`: real runs of a small vision model on real gloo ranks, each hit by a random fault",
        "and started again on another number of ranks, loader processes and packs a pass, to its last step.",
        "Then its log has to be that of a run that nothing happened to: every step once, the digest of every step's",
        "packs equal, every loss equal to 1e-5. Shared memory and the temporary folder have to be as before.",
        "",
        f"Seed {seed}: {found.faults.total()} faults in {found.runs} runs of {STEPS} steps of {GLOBAL_PACKS} packs,"
        f" with {found.restarts} restarts, in {found.seconds / 60:.0f} minutes;",
        f"lives on {', '.join(f'{n} ranks: {found.worlds[n]}' for n in sorted(found.worlds))}.",
        f"**{len(found.wrong) or 'None'} of them lost, repeated or changed a step, hung or left anything behind.**",
        "",
        "| fault | times | what it does |",
        "|---|---|---|",
        *(f"| {kind} | {found.faults[kind]} | {(hit.__doc__ or '').strip()} |" for kind, hit in HITS.items()),
        *(["", "What went wrong:", "", *(f"- {sentence}" for sentence in found.wrong)] if found.wrong else []),
    ]
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """0 where nothing went wrong."""
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
        found = campaign(
            folder,
            given.seed,
            given.faults,
            given.minutes,
            lambda line: print(line, flush=True),
            lambda: leftovers(temporary),
        )
    page = report(found, given.seed)
    print(page)
    if given.report:
        given.report.write_text(page, encoding="utf-8")
    return 1 if found.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
