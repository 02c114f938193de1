"""A model that answers in a dialogue, its text streamed as it is sampled."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jinja2 import TemplateError
from torch import nn
from transformers import PreTrainedTokenizerBase, StoppingCriteria, TextStreamer

from alignlab.chat.settings import SpeakerSettings
from alignlab.data.tokenise.templates import set_template
from alignlab.data.tokenise.turn_ends import stop_tokens
from alignlab.errors import InputError
from alignlab.models.stopping import declared_stops
from alignlab.types.rows import Message


class Answer(NamedTuple):
    """What a model has answered.

    Args:
        text: The text, without the tokens that end it.
        finished: Whether the model ended it; otherwise it was cut off.
    """

    text: str
    finished: bool


class Speaker:
    """A model that answers.

    Args:
        model: A causal language model in eval mode.
        tokenizer: Its tokenizer; gets a chat template if it has none.
        chat_template: As in ``templates.choose_template``.
        variables: Values of the template's own variables.

    Raises:
        InputError: The template does not fit; see ``templates.set_template``.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        chat_template: str,
        variables: Mapping[str, Any],
    ):
        self.model, self.tokenizer = model, tokenizer
        template = set_template(tokenizer, chat_template, variables)
        self.stop_tokens = sorted(stop_tokens(tokenizer, template) | declared_stops(model))

    def answer(
        self,
        messages: Sequence[Message],
        settings: SpeakerSettings,
        show: Callable[[str], Any],
        stopped: Callable[[], bool] = lambda: False,
    ) -> Answer:
        """Sample an answer. An interruption by Ctrl-C ends it where it is.

        Args:
            messages: The dialogue so far, the user's turn last.
            settings: How the answer is sampled.
            show: Gets each new piece of the text.
            stopped: Whether to end the answer where it is; asked after each token.

        Raises:
            InputError: The template refuses the dialogue, or it has no room left in the model's context.
        """
        try:
            ids = self.tokenizer.apply_chat_template(
                list(messages), add_generation_prompt=True, return_tensors="pt", return_dict=True
            )["input_ids"].to(self.model.device)
        except TemplateError as error:
            why, instead = (
                f"the model's chat template refuses it: {error}",
                "Begin anew, with user and assistant in turn",
            )
            raise InputError("this dialogue", why, instead) from error
        self._refuse_beyond_context(ids.shape[1])
        pieces: list[str] = []
        last_token = None
        with contextlib.suppress(KeyboardInterrupt), torch.inference_mode():
            tokens = self.model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                streamer=_Pieces(self.tokenizer, lambda piece: (pieces.append(piece), show(piece))),
                stopping_criteria=[_Stopped(stopped)],
                eos_token_id=self.stop_tokens,
                pad_token_id=self.tokenizer.pad_token_id,
                **settings.for_generate(),
            )
            last_token = int(tokens[0, -1])
        return Answer("".join(pieces), last_token in self.stop_tokens)

    def _refuse_beyond_context(self, num_tokens: int) -> None:
        limit = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        if limit is not None and num_tokens >= limit:
            why = f"it has {num_tokens} tokens, and the model reads {limit}"
            raise InputError("this dialogue", why, "Begin anew")


class _Stopped(StoppingCriteria):
    """A criterion of Transformers that asks whether to end the answer."""

    def __init__(self, stopped: Callable[[], bool]):
        self.stopped = stopped

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """The same for all sequences, ``[B]``."""
        return torch.full(input_ids.shape[:1], self.stopped(), device=input_ids.device)


class _Pieces(TextStreamer):
    """A streamer of Transformers that gives its text away in place of printing it."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, give: Callable[[str], Any]):
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.give = give

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Give a piece away."""
        if text:
            self.give(text)
