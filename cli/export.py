"""lmms export."""

from pathlib import Path
from typing import Annotated

import typer

from lmms.cli import ui
from lmms.configs.settings.train import ExportType


def export(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CKPT", help="A checkpoint folder (OUTPUT/step-...), or a run's OUTPUT folder.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write; must not exist.")],
    dtype: Annotated[ExportType, typer.Option(help="fp32: the master weights; bf16: half the space.")] = "fp32",
    merged: Annotated[
        bool, typer.Option("--merged", help="For a run with LoRA: write a whole model with LoRA added to the weights.")
    ] = False,
    model: Annotated[
        str | None, typer.Option(metavar="DIR", help="The run's model, if its folder has moved: a folder or hub id.")
    ] = None,
) -> None:
    """Write a checkpoint as a Hugging Face folder that from_pretrained loads; for a run with LoRA, as a PEFT adapter.

    Given a run, takes its best checkpoint if load_best_model_at_end is set there, else its newest complete checkpoint.

    Example: lmms export runs/one/step-00000100 model/
    """
    from lmms.train.checkpoint.files import check_export

    # Before the imports that take seconds.
    check_export(checkpoint, out)
    with ui.doing("loading torch and transformers"):
        from lmms.train.checkpoint.export import export
        from lmms.train.checkpoint.keep import choose_checkpoint

    chosen, reason = choose_checkpoint(checkpoint)
    if reason:
        ui.console().print(f"taking {chosen}, {reason}", soft_wrap=True)
    with ui.doing("writing the weights and reading them again"):
        written = export(chosen, out, dtype, merged, model)
    is_adapter = (written / "adapter_config.json").exists()
    reader = "PEFT loads the adapter onto its base" if is_adapter else "from_pretrained loads it (transformers 4.57, 5)"
    ui.console().print(f"exported {written}; next: {reader}", soft_wrap=True)
