"""The embedded data: word and number problems with worked solutions, right and wrong, made on the fly.

Every row comes from its seed, split and index alone, so that a longer run sees the same rows first.
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
        level: 1 one digit, 2 two digits, 3 products too, 4 three digits, 5 two operations.
        kind: Kind of row; ``auto``: what the method row_kind.
        num_train: Training rows.
        num_validation: Held-out rows.
        num_rejected: Wrong solutions per preference row, each with another wrong answer.
        mistakes: Share of demonstrations (and texts) that are wrong, as a weak pupil's are.
        seed: Chooses problems, wording and mistakes.
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
        self.dropped: Counter[str] = Counter()  # none, ever

    def serve(self, kind: type[Row]) -> None:
        """Make the kind of row that the method eats, where the settings leave it open."""
        if self.kind == "auto":
            self.kind = kind.__name__.lower()

    def rows(self, split: Split) -> Iterator[Row]:
        """Rows of one side of the split, in order."""
        return (self.row(split, index) for index in range(self.num_rows[split]))

    def row(self, split: Split, index: int) -> Row:
        """Row number ``index`` (from 0) of a split, whatever the number of rows."""
        rng = Random(f"{self.seed} {split} {index}")
        problem = draw(self.level, split, rng)
        question, right = word(problem, rng), solve(problem)
        wrong = islice(wrong_solutions(problem, rng), self.num_rejected)

        def shown() -> Solution:
            return next(wrong) if rng.random() < self.mistakes else right

        # Operations, columns and carries all lengthen the worked solution.
        columns = {"answer": right.answer, "difficulty": len(right.reasoning)}
        common = {"origin": f"arithmetic {split}:{index + 1}", "columns": columns}
        prompt, chosen = _turn("user", question), _turn("assistant", right)
        match self.kind:
            case "demonstration":
                return Demonstration(messages=prompt + _turn("assistant", shown()), **common)
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
                return Text(text=f"{question}\n{shown()}", **common)

    def fingerprint(self) -> str:
        """Hash of the settings and of the generator's code: equal for equal rows only."""
        settings = repr((self.level, self.kind, self.num_rejected, self.mistakes, self.seed, self.num_rows)).encode()
        code = b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
        return hashlib.sha256(settings + code).hexdigest()


def _turn(role: str, content: object) -> tuple[Message, ...]:
    return ({"role": role, "content": str(content)},)
