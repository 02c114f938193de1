"""The data module of all methods: converts the rows of a source, tokenises them, plans steps and collates batches."""

import errno
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any, Protocol

import lightning
from transformers import PreTrainedTokenizerBase

from alignlab.data.batching.mismatch import WithMismatched
from alignlab.data.batching.steps import (
    PlannedRows,
    StepLoader,
    num_epoch_steps,
    stream_steps,
    table_steps,
    validation_steps,
)
from alignlab.data.formats.conversions import convert, converts, prepend
from alignlab.data.settings import LoadSettings, PlanSettings, TokenSettings
from alignlab.data.sources.fingerprint import digest
from alignlab.data.sources.split import Part, Source, split_rows
from alignlab.data.table.cache import TokenTable, build_table, tokenize_stream, user_cache
from alignlab.data.table.table import Joined, WithColumn
from alignlab.data.tokenise.rows import tokenize
from alignlab.data.tokenise.templates import choose_template
from alignlab.data.tokenise.turn_ends import stop_tokens
from alignlab.data.unread import describe_unread
from alignlab.errors import InputError
from alignlab.system.paths import reason, typed_path
from alignlab.types.batch import StepBatch, StepTotals
from alignlab.types.rows import Prompt, Row, TokenRow

log = logging.getLogger(__name__)

NO_FOLDER = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOENT, errno.ENOTDIR)
"""Error numbers for a cache folder that cannot be created or written."""


VALIDATION_ROWS = 1024
"""Rows of a step of validation: some losses depend on the other rows of a step, and those of validation must not depend
on the batch size of training."""


class Steps(list):
    """A dataloader over a list of steps. A subclass, because Lightning takes a plain list for several dataloaders."""


class RowSampler(Protocol):
    """Samples training rows during training; see ``rollout.data``."""

    def loader(self, data: "DataModule", learner: Any, num_steps: int) -> Iterable[StepBatch]:
        """Give the optimizer steps of this rank."""


class DataModule(lightning.LightningDataModule):
    """Rows of a source as planned optimizer steps.

    Args:
        source: Source of the rows.
        kind: The kind of row that the method trains on.
        mismatched: Whether each row also has its prompt with the completion of another row.
        tokenizer: Tokenizer with its chat template.
        tokens: How rows are tokenised.
        plan: How rows are grouped into steps.
        load: How data is split, cached and loaded.
    """

    def __init__(
        self,
        *,
        source: Source,
        kind: type[Row],
        mismatched: bool = False,
        tokenizer: PreTrainedTokenizerBase,
        tokens: TokenSettings,
        plan: PlanSettings,
        load: LoadSettings,
    ):
        super().__init__()
        self.source, self.kind, self.mismatched, self.tokenizer = source, kind, mismatched, tokenizer
        self.tokens, self.plan, self.load = tokens, plan, load
        self.fingerprints: dict[str, str] = {}
        """Hash of the rows of each split, before they are tokenised."""
        self.train = None if load.streaming else self._mismatched(self._table("train"))
        names = getattr(source, "validation_sets", ())
        tables = {name: self._table(f"validation/{name}") for name in names}
        joined = Joined({name: table for name, table in tables.items() if table is not None}) if names else None
        self.validation = self._mismatched(joined if names else self._table("validation"))
        self.validation_sets: Mapping[str, range] = joined.ranges if joined else {}
        """Indices of the validation rows of each named set."""
        self.num_steps = self.num_epoch_steps
        self.rollout: RowSampler | None = None
        self.model_stop_tokens: frozenset[int] = frozenset()
        """Ids on which the model's generation config stops, known once it is loaded."""
        self._log_dropped()

    @property
    def num_epoch_steps(self) -> int | None:
        """Number of optimizer steps in an epoch; ``None`` for a stream."""
        return None if self.train is None else num_epoch_steps(len(self.train), self.plan)

    @property
    def longest_sequence(self) -> int:
        """Tokens of the longest prompt with one completion; for a stream, the maximum allowed."""
        if self.load.streaming:
            return self.tokens.max_tokens_per_sequence
        return max(table.longest_sequence for table in (self.train, self.validation) if table is not None)

    @property
    def stop_tokens(self) -> list[int]:
        """Token ids that end a completion: those of tokenizer and template, and of the model's generation config."""
        tokens = self.tokens
        template = choose_template(self.tokenizer, tokens.chat_template, tokens.chat_template_kwargs)
        return sorted(stop_tokens(self.tokenizer, template) | self.model_stop_tokens)

    @property
    def unread_columns(self) -> list[str]:
        """Lines about the columns of the training rows that nothing reads; none for a stream."""
        counts = {} if self.train is None else self.train.counts.unread
        return describe_unread(counts, self.kind, (*self.tokens.number_columns, "answer"))

    def window(self, number: int, num_steps: int) -> tuple[Sequence[TokenRow], float]:
        """The training rows of several optimizer steps, in the order of the plan.

        Args:
            number: Number of the window, from 0.
            num_steps: Number of optimizer steps in a window.

        Returns:
            The rows, and the number of epochs after them.
        """
        plan = replace(self.plan, global_batch_size=self.plan.global_batch_size * num_steps)
        step = next(table_steps(self.train, plan, 0, 1, number))
        return step.rows, step.epoch

    def rows(self, part: Part) -> Iterator[Row]:
        """Yield the rows of a split or of a named validation set (``validation/NAME``).

        Validation rows are those of the source, or held out from its training rows.
        """
        rows = split_rows(self.source, part, self.load.validation_size, self.load.streaming)
        rows = islice(rows, self.load.num_rows) if part == "train" else rows
        return (prepend(row, self.load.prepend) for row in rows) if self.load.prepend else rows

    def add_column(
        self, part: Part, name: str, values: Sequence[Any], mismatched_values: Sequence[Any] | None = None
    ) -> None:
        """Add a numeric column to the rows of a split, and to their mismatched rows if there are any."""
        setattr(self, part, WithColumn(getattr(self, part), name, values, mismatched_values))

    def validation_prompts(self, limit: int, columns: Collection[str]) -> dict[str | None, list[TokenRow]]:
        """The first ``limit`` validation rows that have certain columns, as prompts; of each named set.

        Rows that are too long are left out.

        Args:
            limit: Maximum number of rows, of each set.
            columns: Names of the columns.
        """
        return {name: self._prompts(name, limit, columns) for name in self.validation_sets or (None,)}

    def _prompts(self, name: str | None, limit: int, columns: Collection[str]) -> list[TokenRow]:
        rows = self.rows("validation" if name is None else f"validation/{name}")
        having = (row for row in rows if row.columns.keys() >= {*columns} and converts(row, Prompt))
        encoded = [tokenize(convert(row, Prompt), self.tokenizer, self.tokens) for row in islice(having, limit)]
        return [row for row in encoded if isinstance(row, TokenRow)]

    def train_dataloader(self) -> Iterable[StepBatch]:
        """All steps of the run, over all epochs; resumes from a checkpoint."""
        if self.rollout is not None:
            return self.rollout.loader(self, self.trainer.lightning_module, self.num_steps)
        if self.train is None:
            return self._loader(partial(stream_steps, self._stream, self.plan), self.num_steps, resumable=True)
        return self._loader(partial(table_steps, self.train, self.plan), self.num_steps, resumable=True)

    def val_dataloader(self) -> Iterable[StepBatch]:
        """The validation rows once, in order; a step has rows of one validation set."""
        if self.validation is None:
            return []
        if self.kind is Prompt:
            # Prompts have no loss; callbacks sample completions for them at the end of validation.
            return Steps([StepBatch([], StepTotals(supervised_tokens=0, sequences=0, groups=0, tokens=0, rows=0), 0.0)])
        plan = replace(self.plan, order="as_is", global_batch_size=VALIDATION_ROWS)
        sets = self.validation_sets or {None: range(len(self.validation))}
        num_steps = sum(num_epoch_steps(len(indices), plan) for indices in sets.values())
        return self._loader(partial(validation_steps, self.validation, sets, plan), num_steps, resumable=False)

    def _loader(self, steps: Callable[..., Iterator[PlannedRows]], num_steps: int, resumable: bool) -> StepLoader:
        return StepLoader(
            partial(steps, *self._rank()),
            num_steps=num_steps,
            packing=self.load.packing,
            pad_token_id=self.tokenizer.pad_token_id or 0,
            num_workers=self.load.num_workers,
            resumable=resumable,
            weight_column=self.tokens.weight_column,
        )

    def _rank(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _table(self, part: Part) -> TokenTable | None:
        """The token table of a split, from the cache if possible; ``None`` if it is empty."""
        if self.load.cache_dir:
            typed_path(self.load.cache_dir, "data.cache_dir")
        held_out = f"{part} {self.load.validation_size} {self.load.prepend or ''}".rstrip()
        if part == "train" and self.load.num_rows:
            held_out += f" first {self.load.num_rows}"
        fingerprint = f"{self.source.fingerprint()} {held_out}"
        self.fingerprints[part] = digest(fingerprint)[:16]
        try:
            table = build_table(
                (convert(row, self.kind) for row in self.rows(part)),
                source_fingerprint=fingerprint,
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
            why = f"no training row is left: {table.counts}"
            if table.counts.are_bad:
                raise InputError("data.bad_rows=drop", why, "Type data.bad_rows=error: it says what is wrong with each")
            asked = f"data.truncation={self.tokens.truncation} at {self.tokens.max_tokens_per_sequence} tokens"
            instead = "Raise data.max_tokens_per_sequence, type data.truncation=left_prompt, or give other data"
            raise InputError(asked, why, instead)
        if part != "train" and len(table) == 0 and self.load.validation_size is not None:
            log.warning("no row of %s is left, so it is not measured: %s", part, table.counts)
        return table if len(table) else None

    def _mismatched(self, table: "TokenTable | Joined | None") -> "TokenTable | Joined | WithMismatched | None":
        """The rows, with their mismatched rows if the method needs them; ``None`` without rows."""
        if table is None or not len(table):
            return None
        return WithMismatched(table, self.tokens.max_tokens_per_sequence) if self.mismatched else table

    def _log_dropped(self) -> None:
        """Log how many rows the source dropped, also when a cached table is used and the source has not been read."""
        if self.tokens.bad_rows == "drop" and not self.load.streaming:
            for part in ("train", "validation"):
                for _ in self.source.rows(part):
                    pass
            for reason, count in self.source.dropped.items():
                log.warning("dropped %d rows: %s", count, reason)

    def _stream(self) -> Iterator[TokenRow]:
        rows = (convert(row, self.kind) for row in self.rows("train"))
        return tokenize_stream(rows, self.tokenizer, self.tokens, self.kind)
