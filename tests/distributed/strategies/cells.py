"""The matrix of strategies, methods and adapters: what is declared to run, what is refused, and its table in the docs.

A later method is added to ``METHODS`` here and to ``tests/methods/toy.py``; nothing else changes.
"""

import functools
from unittest.mock import patch

from omegaconf import OmegaConf
from tests.commands import REPOSITORY

from alignlab.cli.composition.compose import compose
from alignlab.config import compat
from alignlab.errors import InputError

METHODS = (
    "sft", "pretrain", "dpo", "group_dpo", "orpo", "simpo", "cpo", "kto", "reward_model", "grpo", "rloo", "ppo",
)  # fmt: skip
PEFTS = ("full", "lora", "qlora", "qlora_8bit")
STRATEGIES = (
    "ddp", "fsdp", "deepspeed_z1", "deepspeed_z2", "deepspeed_z3",
    "deepspeed_z2_offload", "deepspeed_z3_offload", "deepspeed_z3_nvme",
)  # fmt: skip
NVME = "strategy.config.zero_optimization.offload_optimizer.nvme_path"
DOCS = REPOSITORY / "docs" / "strategies.md"
BEGIN, END = "<!-- matrix: written by the tests -->", "<!-- matrix: end -->"


def words(method, peft, strategy):
    """The cell as it is typed."""
    typed = [f"method={method}", f"peft={'none' if peft == 'full' else peft}", f"strategy={strategy}"]
    return typed + ([f"{NVME}=disk"] if strategy == "deepspeed_z3_nvme" else [])


@functools.cache
def refusal(method, peft, strategy):
    """Why a cell is refused before any weight is loaded, or None; a library that this machine lacks is no reason."""
    try:
        with patch.object(compat, "_has_asynchronous_io", lambda: True):
            compat.check(OmegaConf.to_container(compose(words(method, peft, strategy)), resolve=True))
    except InputError as error:
        return error
    return None


def table():
    """The matrix in Markdown: a line per method, a column per strategy, in each cell all adapters."""
    reasons: list[str] = []
    lines = ["| method | " + " | ".join(f"`{strategy}`" for strategy in STRATEGIES) + " |"]
    lines += ["|---|" + ":-:|" * len(STRATEGIES)]
    for method in METHODS:
        lines.append(f"| `{method}` | " + " | ".join(mark(method, strategy, reasons) for strategy in STRATEGIES) + " |")
    return "\n".join([*lines, "", *(f"{number}. {why}." for number, why in enumerate(reasons, start=1))])


def mark(method, strategy, reasons):
    """✓, and which adapters are refused, each with the number of its reason; a new reason joins the list."""
    refused = {peft: refusal(method, peft, strategy) for peft in PEFTS}
    reasons += sorted({error.why for error in refused.values() if error} - set(reasons))
    without = [f"{peft} ({reasons.index(error.why) + 1})" for peft, error in refused.items() if error]
    head = "✓" if not without else "✓ not " if len(without) < len(PEFTS) else "no: "
    return head + ", ".join(without)


def written():
    """The table that stands in the docs."""
    return DOCS.read_text().partition(BEGIN)[2].partition(END)[0].strip()


def write():
    """Put the table into the docs."""
    head, _, rest = DOCS.read_text().partition(BEGIN)
    DOCS.write_text(f"{head}{BEGIN}\n{table()}\n{END}{rest.partition(END)[2]}")
