"""Built-in data: arithmetic problems in words or numbers with right and wrong worked solutions, generated on the fly.

Every row depends on the seed, the split and its index alone, so a longer run sees the same rows first.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from random import Random
from typing import Annotated, Literal

from pydantic import Field

from alignlab.data.sources.arithmetic.problems import Split, draw
from alignlab.data.sources.arithmetic.solutions import Solution, solve, wrong_solutions
from alignlab.data.sources.arithmetic.wording import word
from alignlab.types.rows import Demonstration, Message, Preference, Prompt, Row, Text, Unpaired

Kind = Literal["auto", "demonstration", "preference", "unpaired", "prompt", "text"]


class Arithmetic:
    """Source of arithmetic problems.

    Train and validation never share a problem, whatever the seeds: the split follows from the numbers and signs.

    Args:
        level: 1: one digit; 2: two digits; 3: also products; 4: three digits; 5: two operations.
        kind: Kind of row; ``auto`` for the kind that the method trains on.
        num_train: Number of training rows.
        num_validation: Number of held-out rows.
        num_rejected: Wrong solutions per preference row, each with another wrong answer.
        mistakes: Share of demonstrations and texts with a wrong solution.
        seed: Seed of problems, wording and mistakes.
    """

    def __init__(
        self,
        *,
        level: Annotated[int, Field(ge=1, le=5)],
        kind: Kind,
        num_train: Annotated[int, Field(ge=1)],
        num_validation: Annotated[int, Field(ge=1)],
        num_rejected: Annotated[int, Field(ge=1, le=16)],
        mistakes: Annotated[float, Field(ge=0, le=1)],
        seed: Annotated[int, Field(ge=0)],
    ):
        self.level, self.kind, self.num_rejected, self.seed = level, kind, num_rejected, seed
        self.mistakes = mistakes
        self.num_rows = {"train": num_train, "validation": num_validation}
        self.dropped: Counter[str] = Counter()  # always empty

    def set_row_kind(self, kind: type[Row]) -> None:
        """Set the kind of row that the method trains on, if ``kind`` is ``auto``."""
        if self.kind == "auto":
            self.kind = kind.__name__.lower()

    def rows(self, split: Split) -> Iterator[Row]:
        """Yield the rows of a split, in order."""
        return (self.row(split, index) for index in range(self.num_rows[split]))

    def row(self, split: Split, index: int) -> Row:
        """Generate row ``index`` (from 0) of a split; it does not depend on the number of rows."""
        rng = Random(f"{self.seed} {split} {index}")
        problem = draw(self.level, split, rng)
        question, right = word(problem, rng), solve(problem)
        wrong = islice(wrong_solutions(problem, rng), self.num_rejected)

        def demonstrated() -> Solution:
            return next(wrong) if rng.random() < self.mistakes else right

        # Difficulty is the length of the worked solution, which grows with operations, columns and carries.
        columns = {"answer": right.answer, "difficulty": len(right.reasoning)}
        common = {"origin": f"arithmetic {split}:{index + 1}", "columns": columns}
        prompt, chosen = _turn("user", question), _turn("assistant", right)
        match self.kind:
            case "demonstration":
                return Demonstration(messages=prompt + _turn("assistant", demonstrated()), **common)
            case "preference":
                rejected = tuple(_turn("assistant", solution) for solution in wrong)
                return Preference(prompt=prompt, chosen=chosen, rejected=rejected, **common)
            case "unpaired":
                desirable = rng.random() < 0.5
                completion = chosen if desirable else _turn("assistant", next(wrong))
                return Unpaired(prompt=prompt, completion=completion, desirable=desirable, **common)
            case "prompt":
                return Prompt(prompt=prompt, **common)
            case "text":
                return Text(text=f"{question}\n{demonstrated()}", **common)

    def fingerprint(self) -> str:
        """Hash the settings and the code of this package, which together decide the rows."""
        settings = repr((self.level, self.kind, self.num_rejected, self.mistakes, self.seed, self.num_rows)).encode()
        code = b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
        return hashlib.sha256(settings + code).hexdigest()


def _turn(role: str, content: object) -> tuple[Message, ...]:
    return ({"role": role, "content": str(content)},)
