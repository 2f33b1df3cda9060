"""build-report.json: what a build read, made and took, beside its manifest.

The report is no part of the data set. It differs from build to build, so the manifest has neither its hash nor its
name, and nothing that compares two builds may read it.
"""

import json
import platform
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from lmms.configs.contract.manifest import Manifest
from lmms.configs.files import write_whole
from lmms.prep.engine.ledger import Ledger
from lmms.prep.engine.work import Work
from lmms.prep.progress import Progress, Report

REPORT_NAME = "build-report.json"
_LIBRARIES = ("tokenizers", "fastokens", "jinja2", "numpy", "polars", "pyarrow", "pillow")
"""What decides how fast a build is, and what it gives."""


@dataclass(slots=True)
class Clock:
    """The time of a build so far, by stage: a stage begins with its first word of progress."""

    started: datetime = field(default_factory=lambda: datetime.now(UTC))
    cpu_s: float = field(default_factory=lambda: cpu_seconds())
    """CPU seconds of this process before the build."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Stage that has ended -> seconds, in the order of the stages."""
    stage: str = "finding"
    since: float = field(default_factory=time.perf_counter)

    def begin(self, stage: str) -> None:
        """End the stage at hand and begin another."""
        now = time.perf_counter()
        self.seconds[self.stage] = self.seconds.get(self.stage, 0.0) + now - self.since
        self.stage, self.since = stage, now

    def listening(self, report: Report) -> Report:
        """The same report of progress, which this clock hears too."""

        def heard(progress: Progress) -> None:
            if progress.stage != self.stage:
                self.begin(progress.stage)
            report(progress)

        return heard


def cpu_seconds() -> float:
    """CPU seconds of this process, and of those that it started and that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def peak_bytes() -> int:
    """The most memory that this process or one that it started has had."""
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def build_report(clock: Clock, ledger: Ledger, manifests: Sequence[Manifest], workers: int) -> dict[str, Any]:
    """The content of the report. manifests: of the folder, and of the folder for evaluation if there is one."""
    clock.begin("reported")
    manifest = manifests[0]
    total = Work()
    for work in ledger.work.values():
        total.add(work)
    return {
        "started": clock.started.isoformat(timespec="seconds"),
        "seconds": {name: round(value, 3) for name, value in clock.seconds.items()},
        "cpu_seconds": round(cpu_seconds() - clock.cpu_s, 3),
        "peak_bytes": peak_bytes(),
        "workers": workers,
        "work": _shown(total),
        "counts": manifest.counts,
        "evaluation": manifests[1].counts if len(manifests) > 1 else None,
        "rejects": manifest.rejects,
        "sources": [
            {name: source[name] for name in ("name", "read", "packed", "rejected", "skipped", "tokens", "rejects")}
            | {"work": _shown(ledger.work[number])}
            for number, source in enumerate(manifest.sources)
        ],
        "versions": {
            "python": platform.python_version(),
            **{name: _version(name) for name in ("lmms", *_LIBRARIES)},
        },
    }


def _shown(work: Work) -> dict[str, Any]:
    facts = {name: round(value, 3) if isinstance(value, float) else value for name, value in asdict(work).items()}
    return facts | {"tokenizers": sorted(work.tokenizers)}


def _version(package: str) -> str | None:
    """None for fastokens on a machine for which there is none."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def write_report(report: Mapping[str, Any], folder: Path) -> None:
    """Write build-report.json, whole or not at all."""
    write_whole(folder / REPORT_NAME, json.dumps(report, indent=1) + "\n")
