"""The `lmms` command. Errors meant for the user are one or two lines and exit status 1; 2 is a usage error."""

import sys
import traceback

import typer
from rich.markup import escape

from lmms.cli import ui
from lmms.cli.demo.story import demo
from lmms.cli.export import export
from lmms.cli.inspect import app as inspect_app
from lmms.cli.prep import app as prep_app
from lmms.cli.train import train
from lmms.configs.errors import LmmsError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Prepare shards once, train on them in an order that can be proven. --debug adds tracebacks to errors.",
)
app.add_typer(prep_app, name="prep")
app.command()(train)
app.add_typer(inspect_app, name="inspect")
app.command()(export)
app.command()(demo)


def main() -> None:
    """Entry point of the console script."""
    debug = "--debug" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    try:
        app(args=arguments, prog_name="lmms")
    except LmmsError as error:
        if debug:
            traceback.print_exc()
        ui.error_console().print(f"[bold red]error:[/] {escape(str(error))}")
        sys.exit(1)


if __name__ == "__main__":
    main()
