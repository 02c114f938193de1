"""How likely a language model finds the answers of the data, or its texts."""

import math
from collections.abc import Iterable

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from alignlab.measures.batches import row_of_sequence, row_sums
from alignlab.models.scoring import token_scores
from alignlab.types.batch import MicroBatch
from alignlab.types.loss import Ratio
from alignlab.types.rows import TokenRow


@torch.no_grad()
def likelihood(
    model: nn.Module, batches: Iterable[tuple[list[TokenRow], MicroBatch]], tokenizer: PreTrainedTokenizerBase
) -> dict[str, Ratio]:
    """Measure the supervised tokens.

    Bits per byte do not depend on the tokenizer: all nats, also those of the tokens that end a turn, over the bytes of
    the text in UTF-8, without special tokens (arXiv 2101.00027, section 3.1).

    Args:
        model: A language model in eval mode.
        batches: Of ``micro_batches``.
        tokenizer: Decodes the supervised tokens.

    Returns:
        ``loss`` in nats per token, ``token_accuracy`` and ``bits_per_byte``, for each row, ``[R]``.
    """
    columns: list[tuple[torch.Tensor, ...]] = []
    for rows, batch in batches:
        scores, size = token_scores(model, batch), len(rows)
        row = row_of_sequence(rows)[batch.sequence_ids.cpu()]
        nats, right = (row_sums(values, row, size) for values in (-scores.logps, scores.argmax_correct))
        labels = batch.labels.cpu()
        texts = [tokenizer.decode(labels[row == index], skip_special_tokens=True) for index in range(size)]
        num_bytes = torch.tensor([len(text.encode(errors="surrogatepass")) for text in texts], dtype=torch.float64)
        columns.append((nats, right, torch.bincount(row, minlength=size).double(), num_bytes))
    nats, right, tokens, num_bytes = (torch.cat(column) for column in zip(*columns, strict=True))
    return {
        "loss": Ratio(nats, tokens),
        "token_accuracy": Ratio(right, tokens),
        "bits_per_byte": Ratio(nats / math.log(2), num_bytes),
    }
