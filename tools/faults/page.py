"""The page with the results of all campaigns, a part each."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def told(text: str, page: Path | None, is_wrong: bool) -> int:
    """Print a part, put it into a page if there is one, and give the exit status."""
    print(text)
    if page:
        write_part(page, text)
    return int(is_wrong)


def write_part(page: Path, text: str) -> None:
    """Put a part into a page: in place of the part with its title, or at the end."""
    title = text.partition("\n")[0]
    written = page.read_text(encoding="utf-8") if page.is_file() else ""
    parts = [f"# {part.strip()}\n" for part in re.split(r"^# ", written, flags=re.MULTILINE) if part.strip()]
    titles = [part.partition("\n")[0] for part in parts]
    place = titles.index(title) if title in titles else len(parts)
    parts[place : place + 1] = [text]
    page.write_text("\n".join(parts), encoding="utf-8")
