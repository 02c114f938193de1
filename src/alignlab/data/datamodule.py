"""The one data module of all methods: a source's rows, made the method's kind, tokenised, planned and collated."""

import errno
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Annotated, Any, Protocol

import lightning
from pydantic import Field
from transformers import PreTrainedTokenizerBase

from alignlab.data.batching.mismatch import WithCompanions
from alignlab.data.batching.plan import PlanSettings
from alignlab.data.batching.steps import PlannedRows, StepLoader, num_epoch_steps, stream_steps, table_steps
from alignlab.data.formats.conversions import convert, converts, prepend
from alignlab.data.sources.split import Part, Source, split_rows
from alignlab.data.table.cache import TokenTable, build_table, tokenize_stream, user_cache
from alignlab.data.table.table import WithNumbers
from alignlab.data.tokenise.rows import TokenSettings
from alignlab.data.tokenise.templates import choose_template, stop_tokens
from alignlab.errors import InputError
from alignlab.system.paths import reason, typed_path
from alignlab.types.batch import StepBatch, StepTotals
from alignlab.types.rows import Prompt, Row, TokenRow

log = logging.getLogger(__name__)

NO_FOLDER = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOENT, errno.ENOTDIR)
"""What the system says of a cache folder that cannot be made or written: closed, read-only, or a file in its place."""


@dataclass(frozen=True, kw_only=True)
class LoadSettings:
    """How data is split, kept and brought to the model.

    Args:
        validation_size: Share (below 1) or number of training rows held out where the source has no validation part;
            rows with equal prompts stay together.
        prepend: Messages before every dialogue or prompt: a system text, worked examples. None: nothing.
        packing: Flat micro-batches without padding; else padded ones.
        streaming: Read and tokenise while training instead of before; rows are shuffled within a buffer only.
        num_workers: 1 collates ahead in another process.
        tokenize_workers: Processes that tokenise; ``None`` chooses.
        cache_dir: Where token tables are kept; ``None`` for the user's cache folder.
        fresh: Tokenise again even where a table is cached.
    """

    validation_size: Annotated[float, Field(gt=0, lt=1)] | Annotated[int, Field(ge=1)] | None
    prepend: list[dict[str, str]] | None
    packing: bool
    streaming: bool
    num_workers: Annotated[int, Field(ge=0, le=1)]
    tokenize_workers: Annotated[int, Field(ge=0)] | None
    cache_dir: str | None
    fresh: bool


class Steps(list):
    """A loader of steps that are there already; Lightning takes a plain list for several loaders."""


class RowSampler(Protocol):
    """Makes training rows while training goes on; see ``rollout.data``."""

    def loader(self, data: "DataModule", learner: Any, num_steps: int) -> Iterable[StepBatch]:
        """Optimizer steps of this rank."""


class DataModule(lightning.LightningDataModule):
    """Rows of a source as planned optimizer steps.

    Args:
        source: Where rows come from.
        kind: The kind of row that the method eats.
        tokenizer: With its chat template.
        tokens: How rows become tokens.
        plan: How rows become steps.
        load: How data is split, kept and brought to the model.
        companions: Whether each row carries its prompt with the completion of another row.
    """

    def __init__(
        self,
        *,
        source: Source,
        kind: type[Row],
        companions: bool = False,
        tokenizer: PreTrainedTokenizerBase,
        tokens: TokenSettings,
        plan: PlanSettings,
        load: LoadSettings,
    ):
        super().__init__()
        self.source, self.kind, self.companions, self.tokenizer = source, kind, companions, tokenizer
        self.tokens, self.plan, self.load = tokens, plan, load
        self.train = None if load.streaming else self._table("train")
        self.validation = self._table("validation")
        self.num_steps = self.num_epoch_steps
        self.rollout: RowSampler | None = None
        self._tell_dropped()

    @property
    def num_epoch_steps(self) -> int | None:
        """Optimizer steps in an epoch; ``None`` where a stream does not tell."""
        return None if self.train is None else num_epoch_steps(len(self.train), self.plan)

    @property
    def longest_sequence(self) -> int:
        """Tokens of the longest prompt with one completion; for a stream the most that it may have."""
        if self.load.streaming:
            return self.tokens.max_tokens_per_sequence
        return max(table.longest_sequence for table in (self.train, self.validation) if table is not None)

    @property
    def stop_tokens(self) -> list[int]:
        """Token ids that end a completion."""
        return sorted(stop_tokens(self.tokenizer, choose_template(self.tokenizer, self.tokens.chat_template)))

    def window(self, number: int, num_steps: int) -> tuple[Sequence[TokenRow], float]:
        """The training rows of some optimizer steps at once, in the order of the plan.

        Args:
            number: Of the window, from 0.
            num_steps: Optimizer steps in a window.

        Returns:
            The rows, and the epochs that are over after them.
        """
        plan = replace(self.plan, global_batch_size=self.plan.global_batch_size * num_steps)
        step = next(table_steps(self.train, plan, 0, 1, number))
        return step.rows, step.epoch

    def rows(self, part: Part) -> Iterator[Row]:
        """Rows of a part as the source gives them: its own validation part, or rows held out of its training part."""
        rows = split_rows(self.source, part, self.load.validation_size, self.load.streaming)
        return (prepend(row, self.load.prepend) for row in rows) if self.load.prepend else rows

    def add_numbers(
        self, part: Part, name: str, values: Sequence[Any], companion_values: Sequence[Any] | None = None
    ) -> None:
        """Give every row of a part, and its companion where it has one, one more numeric column."""
        setattr(self, part, WithNumbers(getattr(self, part), name, values, companion_values))

    def validation_prompts(self, limit: int) -> list[Prompt]:
        """Held-out rows that have an ``answer`` column, as prompts, ``limit`` at most."""
        answered = (row for row in self.rows("validation") if "answer" in row.columns and converts(row, Prompt))
        return [convert(row, Prompt) for row in islice(answered, limit)]

    def train_dataloader(self) -> Iterable[StepBatch]:
        """All steps of the run, over all epochs; goes on where a checkpoint left off."""
        if self.rollout is not None:
            return self.rollout.loader(self, self.trainer.lightning_module, self.num_steps)
        if self.train is None:
            return self._loader(partial(stream_steps, self._stream, self.plan), self.num_steps, resumable=True)
        return self._loader(partial(table_steps, self.train, self.plan), self.num_steps, resumable=True)

    def val_dataloader(self) -> Iterable[StepBatch]:
        """The held-out rows once, in their order."""
        if self.validation is None:
            return []
        if self.kind is Prompt:
            # Prompts have nothing to compute a loss on; callbacks complete them when validation ends.
            return Steps([StepBatch([], StepTotals(supervised_tokens=0, sequences=0, groups=0, tokens=0, rows=0), 0.0)])
        plan = replace(self.plan, order="as_is")
        num_steps = num_epoch_steps(len(self.validation), plan)
        return self._loader(partial(table_steps, self.validation, plan), num_steps, resumable=False)

    def _loader(self, steps: Callable[..., Iterator[PlannedRows]], num_steps: int, resumable: bool) -> StepLoader:
        return StepLoader(
            partial(steps, *self._rank()),
            num_steps=num_steps,
            packing=self.load.packing,
            pad_token_id=self.tokenizer.pad_token_id or 0,
            num_workers=self.load.num_workers,
            resumable=resumable,
        )

    def _rank(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _table(self, part: Part) -> TokenTable | None:
        """The token table of a part, from the cache where nothing that decides it has changed."""
        if self.load.cache_dir:
            typed_path(self.load.cache_dir, "data.cache_dir")
        held_out = f"{part} {self.load.validation_size} {self.load.prepend or ''}".rstrip()
        try:
            table = build_table(
                (convert(row, self.kind) for row in self.rows(part)),
                source_fingerprint=f"{self.source.fingerprint()} {held_out}",
                tokenizer=self.tokenizer,
                settings=self.tokens,
                kind=self.kind,
                workers=self.load.tokenize_workers,
                cache_dir=self.load.cache_dir,
                fresh=self.load.fresh,
            )
        except OSError as error:
            if error.errno not in NO_FOLDER:
                raise
            asked = f"data.cache_dir={self.load.cache_dir or user_cache()}"
            raise InputError(asked, reason(error), "Type data.cache_dir=FOLDER for one that can be written") from error
        if part == "train" and len(table) == 0:
            asked = f"data.truncation={self.tokens.truncation} at {self.tokens.max_tokens_per_sequence} tokens"
            instead = "Raise data.max_tokens_per_sequence, type data.truncation=left_prompt, or give other data"
            raise InputError(asked, f"no row is left to train on: {table.counts}", instead)
        if part == "validation" and len(table) == 0 and self.load.validation_size is not None:
            log.warning("no held-out row is left, so there is no validation: %s", table.counts)
        if not len(table):
            return None
        return WithCompanions(table, self.tokens.max_tokens_per_sequence) if self.companions else table

    def _tell_dropped(self) -> None:
        """Say what the source left out, also where a cached table made reading it unnecessary."""
        if self.tokens.bad_rows == "drop" and not self.load.streaming:
            for part in ("train", "validation"):
                for _ in self.source.rows(part):
                    pass
            for reason, count in self.source.dropped.items():
                log.warning("left out %d rows: %s", count, reason)

    def _stream(self) -> Iterator[TokenRow]:
        rows = (convert(row, self.kind) for row in self.rows("train"))
        return tokenize_stream(rows, self.tokenizer, self.tokens, self.kind)
