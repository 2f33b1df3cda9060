"""lmms prep build-shards: sources -> samples -> plan -> shards -> manifest, the whole story.

Two passes. The first reads every record, makes its sample and spools it to a folder next to the output (as large as the
output); the second, knowing all lengths, plans the packs and writes the shards. The manifest is written last and the
folder renamed: a build is complete or does not exist.
"""

import shutil
from collections import Counter
from contextlib import ExitStack, suppress
from dataclasses import asdict
from typing import Any
from uuid import uuid4

from lmms.configs.contract.costs import folder_cost
from lmms.configs.contract.manifest import NOT_READ, Manifest
from lmms.configs.contract.model_folder import ModelFolder
from lmms.configs.errors import ConfigError
from lmms.configs.files import remove
from lmms.configs.settings.prep import PrepConfig
from lmms.prep.audio.decode import sound_decoder
from lmms.prep.build_report import Clock, build_report, write_report
from lmms.prep.engine.cluster import ray_cluster
from lmms.prep.engine.duplicates import settle_duplicates
from lmms.prep.engine.ledger import (
    Ledger,
    check_filters,
    check_held_out,
    check_rejects,
    fetched_rows,
    reject_rows,
    rejects_path,
    source_counts,
)
from lmms.prep.engine.room import room_for
from lmms.prep.first_pass import find_input, max_patches_of, read_records_of, recipe_of, used_functions
from lmms.prep.output import new_output
from lmms.prep.packing import planned_and_written
from lmms.prep.planning.balanced import BALANCED
from lmms.prep.planning.tight import ALGORITHM
from lmms.prep.progress import Report, silent
from lmms.prep.render.render import RENDERER_VERSION
from lmms.prep.rows.find import Unread
from lmms.prep.unchanged import check_unchanged, unchanged
from lmms.prep.video.decode import decoder_of
from lmms.prep.writer import Account, PackFacts, write_folder

TABLE_BYTES = 100
"""About what a record takes in the tables beside the shards."""
_NOT_IN_MANIFEST = ("out", "eval_out", "workers", "fast", "store", "work", "engine", "memory")


def build_shards(config: PrepConfig, report: Report = silent, records: Any = None) -> Manifest:
    """Build a shard folder at config.out. Raises LmmsError; then there is no shard folder at config.out.

    With eval_share in the settings a second folder has the records for evaluation, complete as the first. The manifest
    that is returned is that of config.out: a folder is opened by its own manifest, and that of the second is
    open_dataset(config.eval_place).manifest.

    report: called with the progress of the build. records: records in memory, instead of config.sources or after them:
    an iterable of dicts, a polars frame or a datasets.Dataset, with the columns that docs/records.md names.
    """
    with suppress(OSError):  # a path that cannot be is named below
        if config.store is None and config.store_folder and config.folder.exists():
            remove(config.store_folder)  # of a build that was killed after its output was complete
    clock = Clock()
    report = clock.listening(report)
    with ExitStack() as folders:
        if config.engine == "ray":
            folders.enter_context(ray_cluster())
        output = folders.enter_context(new_output(config.out, config.folder))
        # Workers of a cluster may outlive for a moment the build that they were started for.
        name = "spool" if config.engine == "local" else f"spool-{uuid4().hex[:8]}"
        spool, fetched = output.folder / name, output.folder / "fetched"
        spool.mkdir()
        given = find_input(config, fetched, report, records)
        cost = folder_cost(given.model.path, config.cost_of) if config.plan == "balanced" else None
        limits = recipe_of(config, given.model).limits
        eval_output = None
        if any(source.choice.eval_share for source in given.sources):
            eval_output = folders.enter_context(new_output(config.eval_place, config.eval_folder))
        elif config.eval_out or config.eval_by:
            raise ConfigError("eval_out or eval_by is set, but no eval_share; expected a share such as 0.01")
        with unchanged(given.states):
            ledger, held_out = read_records_of(given, config, spool, report)
        check_filters(ledger)
        check_rejects(ledger, config.max_rejects, config.folder)
        if eval_output:
            check_held_out(held_out, ledger)
        for half in (ledger, held_out):
            settle_duplicates(half, config.duplicates == "drop")
        halves = [
            (half, into, planned_and_written(config, half.all_samples(), limits, cost, spool, into, report))
            for half, into in ((ledger, output), (held_out, eval_output))
            if into
        ]
        check_unchanged(given.states)
        clock.begin("closing")
        shutil.rmtree(spool)
        remove(fetched)
        with room_for(output.folder, lambda: TABLE_BYTES * (len(ledger.rejects) + len(ledger.all_samples()))):
            manifests = [
                write_folder(
                    into.folder, _facts(config, given.model, half), written, rows, _account(half, given.unread)
                )
                for half, into, (written, rows) in halves
            ]
        write_report(build_report(clock, ledger, manifests, config.workers), output.folder)
    if config.store is None and config.store_folder:
        remove(config.store_folder)
    remove(rejects_path(config.folder))  # of an earlier build that stopped: those records are not of this folder
    return manifests[0]


def _facts(config: PrepConfig, folder: ModelFolder, ledger: Ledger) -> PackFacts:
    return PackFacts(
        model=folder,
        model_name=config.model,
        seq_len=config.seq_len,
        max_patches=max_patches_of(config, folder),
        sources=[source.name for source in ledger.sources],
        packing=BALANCED if config.plan == "balanced" else ALGORITHM,
        renderer=RENDERER_VERSION,
        records=ledger.digest.hexdigest(),
        video_decoder=decoder_of(config.video_backend),
        audio_decoder=sound_decoder(),
        settings={key: value for key, value in asdict(config).items() if key not in _NOT_IN_MANIFEST}
        | ({"functions": hashes} if (hashes := used_functions(ledger.sources)) else {}),
    )


def _account(ledger: Ledger, unread: Unread) -> Account:
    return Account(
        sources=list(source_counts(ledger, ledger.all_samples())),
        rejects=reject_rows(ledger),
        fetched=fetched_rows(ledger),
        notes=dict(sum(ledger.notes.values(), Counter()).most_common())
        | {NOT_READ + what: number for what, number in unread.most_common()},
    )
