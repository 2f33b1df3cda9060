"""Random kills of real builds, and other faults of builds: the result is that of a build that nothing happened to.

    python -m tools.faults.builds --kills 50 --seed 1 --report docs/faults.md

A build is started as a command and hit at a random moment by SIGKILL: the process itself, with all its children, or one
child of it. The same command is run again until it ends well. Then every file has to be equal to that of an
undisturbed build, and no process and no half-written file may be left. The other faults are in build_faults.py.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from tools.faults.build_faults import FAULTS, NotPossible, files, run_fault, what_it_does, write_sources
from tools.faults.page import ROOT, told
from tools.faults.pids import children

TITLE = "# Builds that are hit"
WORKERS = (0, 1, 2, 5)
PATIENCE_S = 600.0
ORPHANS_S = 60.0
"""Within so many seconds a process that was just starting sees that its build is dead."""
KINDS = {
    "the build alone": "SIGKILL to the process of the command; its children have to end by themselves.",
    "all processes": "SIGKILL to the build and its children at once, as a machine that loses power.",
    "one child": "SIGKILL to a worker, or to the process that reads tables: the build has to go on by itself.",
}


@dataclass(slots=True)
class Findings:
    """The result of a campaign."""

    kills: Counter[str] = field(default_factory=Counter)
    """Kind -> hits."""
    builds: Counter[int] = field(default_factory=Counter)
    """Workers -> builds that were hit and came to their end."""
    faults: dict[str, str] = field(default_factory=dict)
    """Name of another fault -> `as said`, `not possible here`, or what is wrong."""
    wrong: list[str] = field(default_factory=list)
    seconds: float = 0.0


def start(folder: Path, out: Path, workers: int) -> "subprocess.Popen[bytes]":
    """Start the build as a command in a session of its own."""
    sources = [str(folder / "data" / name) for name in ("b.parquet", "a.jsonl")]
    options = {"model": ROOT / "cli" / "demo" / "model", "seq-len": 1024, "out": out, "workers": workers}
    options |= {"max-rejects": 0.5, "shard-bytes": 2**20}
    command = [sys.executable, "-m", "lmms.cli", "prep", "build-shards", *sources, "--quiet"]
    command += [word for name, value in options.items() for word in (f"--{name}", str(value))]
    with (out.parent / "said.log").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)


def hit(build: "subprocess.Popen[bytes]", kind: str, rng: random.Random) -> int:
    """Kill; returns 1, or 0 where nothing was left to kill."""
    below = children(build.pid)
    if build.poll() is not None or (kind == "one child" and not below):
        return 0
    with suppress(ProcessLookupError):
        if kind == "all processes":
            os.killpg(build.pid, signal.SIGKILL)
        else:
            os.kill(rng.choice(below) if kind == "one child" else build.pid, signal.SIGKILL)
    return 1


def hit_build(folder: Path, out: Path, seconds: float, rng: random.Random, findings: Findings) -> None:
    """Run a command until it ends well, hit up to three times. seconds: that it takes undisturbed."""
    workers, kinds = rng.choice(WORKERS), [rng.choice(list(KINDS)) for _ in range(rng.randint(1, 3))]
    name = f"{out.name}, {workers} workers, {', '.join(kinds)}"
    for _ in range(20):
        was_complete, build = out.exists(), start(folder, out, workers)
        below: list[int] = []
        if kinds:
            time.sleep(rng.uniform(0, seconds))
            below, kind = children(build.pid), kinds.pop()
            findings.kills[kind] += hit(build, kind, rng)
        code = build.wait(PATIENCE_S)
        if left := _alive(below, ORPHANS_S):
            findings.wrong.append(f"{name}: the processes {left} outlived the build by {ORPHANS_S:g} s")
        if code == 0 or (was_complete and code == 1):  # "exists", after a kill in the last moment
            break
        if code != -signal.SIGKILL:
            findings.wrong.append(f"{name}: ended with {code}; see {out.parent / 'said.log'}")
            return
    findings.builds[workers] += 1


def _alive(pids: Sequence[int], patience_s: float) -> list[int]:
    """The processes that do not end within so many seconds."""
    deadline = time.monotonic() + patience_s
    while (left := [pid for pid in pids if Path(f"/proc/{pid}/cmdline").exists()]) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def campaign(folder: Path, seed: int, kills: int, faults: Sequence[str], say: Callable[[str], None]) -> Findings:
    """Hit builds until so many kills are reached, then make the other faults."""
    findings, rng, began = Findings(), random.Random(seed), time.monotonic()
    write_sources(folder)
    if start(folder, folder / "undisturbed", 1).wait(PATIENCE_S):
        raise SystemExit(f"the undisturbed build failed: {(folder / 'said.log').read_text()}")
    expected, seconds = files(folder / "undisturbed"), time.monotonic() - began
    for number in range(10 * kills):
        if findings.kills.total() >= kills:
            break
        out, known = folder / f"build{number}", len(findings.wrong)
        hit_build(folder, out, seconds, rng, findings)
        beside = [path.name for path in folder.glob(f"{out.name}.*")]
        if not out.exists() or files(out) != expected or beside:
            findings.wrong.append(f"{out}: differs from the undisturbed build, or left {beside}")
        findings.seconds = time.monotonic() - began
        say(f"{findings.kills.total()} kills, {len(findings.wrong)} wrong, {findings.seconds:.0f} s")
        for sentence in findings.wrong[known:]:
            say(sentence)
    for name in faults:
        with tempfile.TemporaryDirectory(prefix="lmms-fault-") as made:
            try:
                wrong = run_fault(name, Path(made))
                findings.faults[name] = wrong or "as said"
                findings.wrong += [wrong] if wrong else []
            except NotPossible as why:
                findings.faults[name] = f"not possible here: {why}"
        findings.seconds = time.monotonic() - began
        say(f"{name}: {findings.faults[name]}, {findings.seconds:.0f} s")
    return findings


def report(findings: Findings, seed: int) -> str:
    """The part of the page about builds."""
    builds = ", ".join(f"{count} with {workers} workers" for workers, count in sorted(findings.builds.items()))
    lines = [
        TITLE,
        "",
        "Made by `python -m tools.faults.builds`: real builds of lines with pictures and a table, hit by SIGKILL at a",
        "random moment and run again by the same command until they end well. Then every file is compared with an",
        "undisturbed build's, and no process and no half-written file may be left.",
        "",
        f"Seed {seed}: {findings.kills.total()} kills in {findings.builds.total()} builds ({builds}) and"
        f" {len(findings.faults)} other faults, in {findings.seconds / 60:.0f} minutes.",
        f"**{len(findings.wrong) or 'None'} of them changed a byte, hung, left anything behind or ended otherwise than"
        " said here.**",
        "",
        "| killed | times | what it does |",
        "|---|---|---|",
        *(f"| {kind} | {findings.kills[kind]} | {words} |" for kind, words in KINDS.items()),
        "",
        "| fault | what it does, and the outcome | |",
        "|---|---|---|",
        *(f"| {name} | {what_it_does(name)} | {outcome} |" for name, outcome in findings.faults.items()),
        *(["", "What went wrong:", "", *(f"- {sentence}" for sentence in findings.wrong)] if findings.wrong else []),
    ]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a campaign and write its part of the page; returns 0 if nothing went wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only-kills", action="store_true", help="leave out the other faults")
    parser.add_argument("--report", type=Path, help="write the part of the page here")
    parser.add_argument("--keep", type=Path, help="folder for the builds; by default they are deleted")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="lmms-builds-") as made:
        folder = given.keep or Path(made)
        folder.mkdir(parents=True, exist_ok=True)
        faults = [] if given.only_kills else list(FAULTS)
        findings = campaign(folder, given.seed, given.kills, faults, lambda line: print(line, flush=True))
    return told(report(findings, given.seed), given.report, bool(findings.wrong))


if __name__ == "__main__":
    sys.exit(main())
