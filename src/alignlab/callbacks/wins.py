"""Win rate against the untrained policy at every validation, by a judge."""

import logging
from typing import Annotated, Any

import lightning
from pydantic import Field

from alignlab.data.datamodule import DataModule
from alignlab.distributed.comm import all_gather, num_ranks, rank
from alignlab.methods.base import Method
from alignlab.rewards.judge.compare import Comparer
from alignlab.rewards.judge.settings import ChatSettings
from alignlab.rollout.collect import draw_completions, prompt_generator
from alignlab.rollout.sampler.sampler import PolicySampler
from alignlab.types.rows import TokenRow

log = logging.getLogger(__name__)


class Wins(lightning.Callback):
    """Logs ``val/win_rate``: prompts whose completion is better than that of the policy before training.

    The completion that the judge prefers in both orders is better; otherwise it is half a win. A prompt gets the same
    random numbers every time, whatever the number of ranks; the global random state is not used.

    Args:
        num_prompts: Maximum number of held-out prompts, of each validation set.
        judge: The judge, and how it is asked.
        rubric: Name of one of our rubrics, or path of a Jinja file.
        sampler: Samples completions from the weights in training.

    Raises:
        InputError: There is no such rubric, or the judge does not answer.
    """

    def __init__(
        self, *, num_prompts: Annotated[int, Field(ge=1)], judge: ChatSettings, rubric: str, sampler: PolicySampler
    ):
        self.num_prompts, self.sampler = num_prompts, sampler
        self.comparer = Comparer(chat=judge, rubric=rubric, name="callbacks.wins")
        self.before: list[str] | None = None

    def state_dict(self) -> dict[str, Any]:
        """Completions of the policy before training, of all prompts."""
        return {"before": self.before}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore them."""
        self.before = state["before"]

    def on_train_start(self, trainer: lightning.Trainer, method: Method) -> None:
        """Sample the completions to compare with, unless the run has resumed."""
        if self.before is None and method.head == "language_model":
            _, texts = self._sample(trainer, method)
            parts = all_gather(texts)  # rank r has the prompts r, r + ranks, …
            self.before = [parts[index % len(parts)][index // len(parts)] for index in range(sum(map(len, parts)))]

    def on_validation_epoch_end(self, trainer: lightning.Trainer, method: Method) -> None:
        """Sample, compare and log."""
        if not self.before:
            return
        prompts, texts = self._sample(trainer, method)
        before = self.before[rank() :: num_ranks()]
        found = self.comparer.compare([prompt.record["prompt"] for prompt in prompts], texts, before)
        if found.first_failure:
            log.warning("judge: %s questions without a verdict; first: %s", dict(found.failures), found.first_failure)
        wins = [(outcome + 1) / 2 for part in all_gather(found.outcomes) for outcome in part if outcome is not None]
        if wins:
            method.log("val/win_rate", sum(wins) / len(wins))

    def _sample(self, trainer: lightning.Trainer, method: Method) -> tuple[list[TokenRow], list[str]]:
        """This rank's prompts, and one completion of each."""
        data: DataModule = trainer.datamodule
        every = [row for rows in data.validation_prompts(self.num_prompts, []).values() for row in rows]
        own = range(rank(), len(every), num_ranks())
        prompts = [every[index] for index in own]
        generators = [prompt_generator(data.plan.seed, "wins", index) for index in own]
        drawn = draw_completions(self.sampler, method, data, prompts, generators, 1)
        return prompts, data.tokenizer.batch_decode(drawn.token_lists(), skip_special_tokens=True)
