"""Settings of sampled answers."""

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from alignlab.types.settings import Settings


@dataclass(frozen=True, kw_only=True)
class SpeakerSettings(Settings):
    """How answers are sampled.

    Args:
        temperature: Temperature of sampling; 0 for the most likely tokens.
        top_p: Smallest probability mass that is sampled from.
        top_k: Number of tokens that are sampled from; 0 for all.
        max_tokens: Maximum number of tokens of an answer.
    """

    temperature: Annotated[float, Field(ge=0)]
    top_p: Annotated[float, Field(gt=0, le=1)]
    top_k: Annotated[int, Field(ge=0)]
    max_tokens: Annotated[int, Field(ge=1)]

    def for_generate(self) -> dict[str, Any]:
        """The same for ``generate`` of Transformers; every setting is given, so the model's own have no effect."""
        shared = {"max_new_tokens": self.max_tokens, "repetition_penalty": 1.0, "num_beams": 1}
        if self.temperature == 0:
            return {**shared, "do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        return {**shared, "do_sample": True, "temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k}
