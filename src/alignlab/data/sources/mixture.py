"""Several sources as one, drawn by weight."""

import random
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import chain, islice
from typing import Annotated, Any, Literal

from pydantic import Field

from alignlab.data.sources.fingerprint import digest
from alignlab.errors import InputError, nearest, raise_all
from alignlab.types.rows import Row


def set_row_kind(source: Any, kind: type[Row]) -> None:
    """Set the kind of row that the method trains on, if the source can make several kinds."""
    if hasattr(source, "set_row_kind"):
        source.set_row_kind(kind)


Stop = Literal["once", "first_exhausted", "all_exhausted", "never"]


class Mixture:
    """Rows of several sources, drawn at random by weight, each source in its own order.

    Args:
        sources: Sources by name.
        weights: Relative weights by the same names; None for equal weights.
        stop: ``once``: yield every row once, and go on with the other sources when one ends; ``first_exhausted``: stop
            when the first source ends; ``all_exhausted``: restart sources that end, until each has ended once;
            ``never``: restart sources that end, until ``num_rows`` rows are drawn.
        num_rows: Maximum number of training rows; None for no limit.
        seed: Seed of the draws.

    Raises:
        InputError: Names of sources and weights differ, a source has named validation sets, or ``never`` without
            ``num_rows``.
    """

    def __init__(
        self,
        *,
        sources: Mapping[str, Any],
        weights: Mapping[str, Annotated[float, Field(gt=0)]] | None,
        stop: Stop,
        num_rows: Annotated[int, Field(ge=1)] | None,
        seed: int,
    ):
        weights = dict.fromkeys(sources, 1.0) if weights is None else weights
        faults = [
            InputError(f"data.weights.{name}", "names and weights of the sources differ", nearest(name, sources))
            for name in sorted(set(sources) ^ set(weights))
        ]
        faults += [
            InputError(
                f"the validation sets of data.source.sources.{name}",
                "the sources of a mixture have one validation part each, and their names would be lost",
                "Give a file, a split or a list in place of names",
            )
            for name, source in sources.items()
            if getattr(source, "validation_sets", ())
        ]
        if stop == "never" and num_rows is None:
            faults.append(InputError("data.stop=never", "the mixture has no end", "Add data.num_rows=NUMBER"))
        raise_all(faults)
        self.sources, self.weights = dict(sources), dict(weights)
        self.stop, self.num_rows, self.seed = stop, num_rows, seed

    def set_row_kind(self, kind: type[Row]) -> None:
        """Set the kind of row that the method trains on, for all sources."""
        for source in self.sources.values():
            set_row_kind(source, kind)

    @property
    def dropped(self) -> Counter[str]:
        """Number of dropped rows of all sources, by reason."""
        return sum((source.dropped for source in self.sources.values()), Counter())

    def rows(self, split: Literal["train", "validation"]) -> Iterator[Row]:
        """Yield the mixed training rows, or the validation rows of the sources in order."""
        if split == "validation":
            return chain.from_iterable(source.rows(split) for source in self.sources.values())
        return islice(self._draw(), self.num_rows)

    def fingerprint(self) -> str:
        """Hash the sources and the settings."""
        parts = {name: source.fingerprint() for name, source in self.sources.items()}
        return digest("mixture", parts, self.weights, self.stop, self.num_rows, self.seed)

    def _draw(self) -> Iterator[Row]:
        generator = random.Random(self.seed)
        running = {name: source.rows("train") for name, source in self.sources.items()}
        ended: set[str] = set()
        empty = set(self.sources)  # until a row is seen
        while running:
            name = generator.choices(list(running), [self.weights[name] for name in running])[0]
            row = next(running[name], None)
            if row is not None:
                empty.discard(name)
                yield row
                continue
            if name in empty:
                why = "it has no training row"
                raise InputError(f"data.source.sources.{name}", why, "Leave it out, or give other data")
            ended.add(name)
            if self.stop == "first_exhausted" or (self.stop == "all_exhausted" and ended == set(self.sources)):
                return
            if self.stop == "once":
                del running[name]
            else:
                running[name] = self.sources[name].rows("train")
