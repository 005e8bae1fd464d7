"""What a user sees of a command: results on standard output, notes, progress and errors on standard error."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import track
from rich.table import Table

if TYPE_CHECKING:
    import pandas as pd


class Screen:
    """Standard output for results, standard error for everything else, what the package logs among it."""

    def __init__(self, *, quiet: bool) -> None:
        self.quiet = quiet
        self.out = Console(highlight=False, soft_wrap=True)
        self.err = Console(stderr=True, highlight=False, soft_wrap=True)
        log = logging.getLogger("perturbdiff")
        log.handlers = [_Notes(self)]
        log.setLevel(logging.INFO)

    def say(self, sentence: str) -> None:
        """A note, unless quiet."""
        if not self.quiet:
            self.err.print(sentence, markup=False)

    def table(self, table: "pd.DataFrame", *, as_json: bool) -> None:
        """A result: a table, or JSON records."""
        if as_json:
            self.out.print_json(table.to_json(orient="records"))
            return
        drawn = Table(*(str(column) for column in table.columns))
        for row in table.itertuples(index=False):
            drawn.add_row(*(f"{value:.3f}" if isinstance(value, float) else str(value) for value in row))
        self.out.print(drawn)

    def facts(self, facts: Mapping[str, str]) -> None:
        """A result: a line a fact."""
        width = max(map(len, facts), default=0)
        for name, value in facts.items():
            self.out.print(f"{name:<{width}}  {value}", markup=False)

    def track[T](self, items: Sequence[T], description: str = "working") -> Iterator[T]:
        """A progress bar over items."""
        return iter(track(items, description=description, console=self.err, disable=self.quiet, transient=True))


class _Notes(logging.Handler):
    """What the package logs, as notes."""

    def __init__(self, screen: Screen) -> None:
        super().__init__()
        self.screen = screen

    def emit(self, record: logging.LogRecord) -> None:
        """Show a sentence."""
        self.screen.say(record.getMessage())


def sentence(error: ValueError | OSError) -> str:
    """One sentence for an error of bad input."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'a file'}: {error.strerror}; check the path, the permissions and the space left."
    return str(error)
