"""The export of the model, and the callback that tries it before training: what cannot be saved is refused then."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import lightning
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from alignlab.distributed.strategies import num_parameters
from alignlab.errors import InputError
from alignlab.methods.base import Method
from alignlab.models.export import ExportError, logits, save, verify, verify_files
from alignlab.models.opening import READ_ERRORS
from alignlab.system.disk import disk_fault
from alignlab.system.paths import reason
from alignlab.types.adapted import base_model, is_adapted

EXAMPLE = {"input_ids": torch.arange(5, 13)[None]}
"""Tokens whose logits are compared, shape ``[1, 8]``."""

LARGEST = 20_000_000
"""Parameters up to which the weights are written as a trial too; of larger models only the other files."""


@dataclass(frozen=True, kw_only=True)
class ModelWriter:
    """Writes the policy as a model folder: Hugging Face, or PEFT for an adapter.

    Args:
        tokenizer: Saved with it.
        dtype: Dtype of the written weights; ``None`` for that of the weights that the optimizer updates, which are
            float32 in mixed precision.
    """

    tokenizer: PreTrainedTokenizerBase
    dtype: torch.dtype | None

    def write(self, method: Method, folder: Path) -> tuple[Mapping[str, Tensor] | None, Tensor]:
        """Write the model. All ranks must call this to gather the weights; rank 0 writes.

        Args:
            method: With its policy, sharded or not.
            folder: Replaced as a whole if it exists.

        Returns:
            The weights by name if they are not those of the policy as it is in memory, else ``None``; and the logits
            or scores of ``EXAMPLE``, shape ``[1, 8, V]`` or ``[1, 1]``.
        """
        expected = method.sharding.forward(logits, method.policy, EXAMPLE)
        weights = method.sharding.master_state_dict(method.policy)
        if method.trainer.is_global_zero:
            if self.dtype is not None:
                weights = _in_dtype(weights or method.policy.state_dict(), self.dtype)
            save(method.policy, self.tokenizer, folder, weights)
        return weights, expected

    def write_and_compare(self, method: Method, folder: Path) -> float:
        """``write`` the model, open it again, and compare it with the model in memory. All ranks must call this.

        Returns:
            Largest difference of a logit; 0 on all ranks but the first.

        Raises:
            ExportError: The files differ from the model.
        """
        weights, expected = self.write(method, folder)
        if not method.trainer.is_global_zero:
            return 0.0
        return verify(folder, method.policy, EXAMPLE, weights, expected, method.sharding.compute_dtype)


def _in_dtype(weights: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    return {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in weights.items()}


class ExportTrial(lightning.Callback):
    """Saves the model before training and opens it again, so that a failure does not come after it.

    Args:
        folder: Made for the trial, and removed.
        writer: Writes the model.
    """

    def __init__(self, folder: Path, writer: ModelWriter):
        self.folder, self.writer = folder, writer

    def on_fit_start(self, trainer: lightning.Trainer, method: Method) -> None:
        """Try the export, and restore the random states.

        Raises:
            InputError: The model cannot be saved, or is another one when it is opened again.
        """
        cuda = [method.device] if method.device.type == "cuda" else []
        try:
            with torch.random.fork_rng(devices=cuda):  # opening a model draws numbers
                self._try(method)
        except (*READ_ERRORS, ExportError) as error:
            if isinstance(error, (InputError, torch.OutOfMemoryError)) or disk_fault(error, self.folder.parent):
                raise
            raise InputError(f"saving {_name(method)}", f"tried before training: {reason(error)}", INSTEAD) from error
        finally:
            if trainer.is_global_zero:
                shutil.rmtree(self.folder, ignore_errors=True)

    def _try(self, method: Method) -> None:
        if num_parameters(method.policy) <= LARGEST:
            self.writer.write_and_compare(method, self.folder / "model")
        elif method.trainer.is_global_zero:
            self.folder.mkdir(parents=True, exist_ok=True)
            verify_files(method.policy, self.writer.tokenizer, self.folder)


INSTEAD = (
    "Correct the value named in config.json, generation_config.json, the tokenizer's files or peft, "
    "or choose another model or peft=lora"
)


def _name(method: Method) -> str:
    kind = method.policy.active_peft_config.peft_type.value.lower() if is_adapted(method.policy) else None
    return type(base_model(method.policy)).__name__ + (f" with an adapter of kind {kind}" if kind else "")
