"""Settings of the section ``data``: how rows become tokens, how these become optimizer steps, and how both are read."""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field

Truncation = Literal["error", "drop", "left_prompt", "right_completion"]
"""What to do with rows that are too long; see ``tokenise.truncate``."""

Order = Literal["shuffled", "as_is", "by_length", "curriculum"]


@dataclass(frozen=True, kw_only=True)
class TokenSettings:
    """Settings that decide how rows become tokens; part of the cache key.

    Args:
        chat_template: ``auto``, ``chatml``, ``plain``, ``none``, the name of one of the tokenizer's own templates, or
            the path of a Jinja file.
        chat_template_kwargs: Values of the template's own variables, by name. Compared, but not hashed.
        special_tokens: What a special-token string in a text row, or in a content with the template ``none``, becomes:
            ``encode`` makes it the special token, ``text`` ordinary tokens; None means ``text`` for text rows and
            ``encode`` with ``none``. In dialogues that a template renders, ``text`` extends to tokens that control
            nothing, and ``encode`` is refused.
        loss_on: Supervise every assistant turn, the last one, or everything. In rows with a separate prompt
            (preferences, unpaired) only turns of the completion are supervised.
        loss_on_reasoning: Whether the reasoning in supervised turns is supervised too, and an empty block of reasoning
            that a template inserts.
        max_tokens_per_sequence: Maximum tokens of a prompt with one completion; length of a block of text.
        truncation: What to do with longer rows.
        max_cut_fraction: Maximum share of rows that may be cut.
        max_dropped_fraction: Maximum share of rows that may be dropped.
        bad_rows: ``error`` raises for a row that cannot be tokenised; ``drop`` drops and counts it.
        cross_document_attention: Whether documents in one block of text attend to each other.
        number_columns: Columns that must hold a finite number in every row, because something computes with them.
        weight_column: The one of them that weighs rows in the loss; None if nothing does.
        weighs_turns: Whether the method weighs the turns of a dialogue.
    """

    chat_template: str
    chat_template_kwargs: dict[str, Any] = field(hash=False)
    special_tokens: Literal["encode", "text"] | None
    loss_on: Literal["assistant", "last", "all"]
    loss_on_reasoning: bool
    max_tokens_per_sequence: Annotated[int, Field(ge=2)]
    truncation: Truncation
    max_cut_fraction: Annotated[float, Field(ge=0, le=1)]
    max_dropped_fraction: Annotated[float, Field(ge=0, le=1)]
    bad_rows: Literal["error", "drop"]
    cross_document_attention: bool
    number_columns: tuple[str, ...]
    weight_column: str | None
    weighs_turns: bool


@dataclass(frozen=True, kw_only=True)
class PlanSettings:
    """How rows become optimizer steps.

    Args:
        global_batch_size: Rows per optimizer step over all ranks.
        batch_size_per_device: Maximum rows of a micro-batch.
        max_tokens_per_micro_batch: Maximum tokens of a micro-batch; a longer row gets a micro-batch of its own.
        order: ``shuffled`` (anew each epoch), ``as_is``, ``by_length`` (rows of similar length share a step, and steps
            are shuffled), or ``curriculum`` (ascending ``order_column``).
        order_column: Numeric column that a curriculum sorts by.
        seed: Seed of the order.
    """

    global_batch_size: Annotated[int, Field(ge=1)]
    batch_size_per_device: Annotated[int, Field(ge=1)]
    max_tokens_per_micro_batch: Annotated[int, Field(ge=1)] | None
    order: Order
    order_column: str | None
    seed: int


@dataclass(frozen=True, kw_only=True)
class LoadSettings:
    """How data is split, cached and loaded.

    Args:
        num_rows: Number of training rows, the first ones that are left after the split; ``None`` for all.
        validation_size: Fraction (below 1) or number of training rows to hold out if the source has no validation
            split; rows with equal prompts stay together.
        prepend: Messages to put before every dialogue or prompt, such as a system message or examples.
        packing: Whether micro-batches are flat, without padding, instead of padded.
        streaming: Whether to read and tokenise during training instead of before; rows are shuffled within a buffer
            only.
        num_workers: 1 to collate ahead in another process, 0 for none.
        tokenize_workers: Number of processes that tokenise; ``None`` chooses.
        cache_dir: Folder of the token tables; ``None`` for the user's cache folder.
        fresh: Whether to tokenise again even if a table is cached.
    """

    num_rows: Annotated[int, Field(ge=1)] | None
    validation_size: Annotated[float, Field(gt=0, lt=1)] | Annotated[int, Field(ge=1)] | None
    prepend: list[dict[str, str]] | None
    packing: bool
    streaming: bool
    num_workers: Annotated[int, Field(ge=0, le=1)]
    tokenize_workers: Annotated[int, Field(ge=0)] | None
    cache_dir: str | None
    fresh: bool
