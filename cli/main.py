"""The `lmms` command. Errors meant for the user are one or two lines and exit status 1; 2 is a usage error."""

import os
import sys
import traceback
from typing import Annotated, Any, NoReturn

import typer
from rich.markup import escape
from typer.core import TyperGroup

from lmms.cli import ui
from lmms.cli.demo.story import demo
from lmms.cli.export import export
from lmms.cli.inspect.order import order
from lmms.cli.inspect.run import run
from lmms.cli.inspect.shard import app as inspect_app
from lmms.cli.inspect.step import step
from lmms.cli.prep import app as prep_app
from lmms.cli.settings import ANY_OPTION
from lmms.cli.train import train
from lmms.configs.errors import LmmsError, file_limit


class _InOrder(TyperGroup):
    """Commands in the order in which they are used."""

    def list_commands(self, ctx: Any) -> list[str]:
        return ["prep", "inspect", "train", "export", "demo"]


app = typer.Typer(
    cls=_InOrder,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)
app.add_typer(prep_app, name="prep")
inspect_app.command(context_settings=ANY_OPTION)(order)
inspect_app.command()(step)
inspect_app.command()(run)
app.add_typer(inspect_app, name="inspect")
app.command(context_settings=ANY_OPTION)(train)
app.command()(export)
app.command()(demo)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(version("lmms"))
        raise typer.Exit


@app.callback()
def lmms(
    show_version: Annotated[
        bool, typer.Option("--version", help="Print the version and stop.", is_eager=True, callback=_print_version)
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Add the traceback to an error; may stand anywhere.")] = False,
) -> None:
    """Prepare shards once, train on them in an order that can be proven."""


def main() -> None:
    """Run the command of this process's arguments; `__main__` calls it."""
    debug = "--debug" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    try:
        app(args=arguments, prog_name="lmms")
    except LmmsError as error:
        if debug:
            traceback.print_exc()
        _fail(str(error))
    except BrokenPipeError:
        # The reader of the output has ended (`| head`): nothing is left to say, and Python must not flush at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        if debug:
            traceback.print_exc()
        said = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        _fail(file_limit(error) or said)


def _fail(message: str) -> NoReturn:
    ui.error_console().print(f"[bold red]error:[/] {escape(message)}")
    sys.exit(1)
