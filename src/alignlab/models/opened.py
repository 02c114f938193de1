"""Open a trained model for use: the weights, adapter and tokenizer of a run, a folder or a hub id."""

from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedTokenizerBase

from alignlab.models.heads import Head
from alignlab.models.load import Pretrained
from alignlab.types.dtypes import Dtype

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


def open_trained(
    path: str, *, dtype: Dtype, device: str, trust_remote_code: bool, head: Head = "language_model"
) -> "tuple[PreTrainedModel | PeftModel, PreTrainedTokenizerBase]":
    """Open a model in eval mode, with its tokenizer.

    Args:
        path: As in ``locations.locate``: a run, model or adapter folder, a checkpoint with a model, or a hub id.
        dtype: Dtype of the weights; ``auto`` is that of the files.
        device: A device of PyTorch; ``auto`` is the GPU if there is one.
        trust_remote_code: Run the code that comes with the weights.
        head: ``reward`` for a reward model.

    Raises:
        InputError: There is no model at the path, or it cannot be read.
    """
    source = Pretrained(
        path=path,
        dtype=dtype,
        attn_implementation="sdpa",
        gradient_checkpointing=False,
        compile=False,
        trust_remote_code=trust_remote_code,
        revision=None,
    )
    tokenizer = source.load_tokenizer()
    model = source.load_model(tokenizer, head=head).eval().requires_grad_(False)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    is_quantised = getattr(model.config, "quantization_config", None) is not None
    return (model if is_quantised else model.to(device)), tokenizer
