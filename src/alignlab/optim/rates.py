"""Learning rates that were published for a method, used where ``optimizer.lr`` is null."""

from typing import NamedTuple


class LearningRates(NamedTuple):
    """Usual peak rates of AdamW for pretrained models of billions of parameters.

    Args:
        full: With all weights trained.
        adapter: With a low-rank adapter, about ten times as large (LoRA, arXiv 2106.09685; QLoRA, arXiv 2305.14314).
    """

    full: float
    adapter: float


SMALL_MODEL = 1e-3
"""For models of a few million parameters."""

SUPERVISED = LearningRates(2e-5, 2e-4)
"""Fine-tuning on demonstrations (Zephyr, arXiv 2310.16944; QLoRA, arXiv 2305.14314, table 9)."""

FROM_COMPARISONS = LearningRates(1e-6, 1e-5)
"""Direct optimisation from comparisons (DPO, arXiv 2305.18290, appendix B)."""

FROM_REWARDS = LearningRates(1e-6, 1e-5)
"""Policy gradients (DeepSeekMath, arXiv 2402.03300, section 4.2)."""

REWARD_MODEL = LearningRates(1e-5, 1e-4)
"""Reward models (Llama 2, arXiv 2307.09288, section 3.2.2)."""

PRETRAINING = LearningRates(3e-4, 3e-4)
"""Pretraining (Llama 2, arXiv 2307.09288, section 2.2)."""
