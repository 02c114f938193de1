"""Which of two models gives the better completion."""

import logging
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from alignlab.assemble import Config, pick
from alignlab.evaluation.completions import Drawn, Score, draw, make_score, records
from alignlab.evaluation.opened import Opened, encode_prompts
from alignlab.evaluation.samples import why_no_prompts
from alignlab.measures.estimates import of_rows, share_of
from alignlab.rewards.judge.compare import Comparer
from alignlab.rewards.judge.settings import ChatSettings
from alignlab.types.loss import Ratio
from alignlab.types.rows import Row

log = logging.getLogger(__name__)


def why_no_wins(config: Config, opened: Opened, row: Row) -> str | None:
    """Why completions cannot be compared; ``None`` if they can."""
    if not config["against"]:
        return "there is no against=MODEL"
    if not (config["method"]["reward"] or config["judge"]["endpoint"]):
        return "there is no method/reward= and no judge.endpoint= that judges the completions"
    return why_no_prompts(opened, row)


def measure_wins(
    config: Config, opened: Opened, other: Opened | None, rows: Sequence[Row]
) -> tuple[dict[str, Ratio], list[dict[str, Any]]]:
    """Prompts whose completion is better than that of the other model: to the judge, if there is one, or by reward."""
    node = config["judge"]
    if node["endpoint"]:  # asked once before anything is sampled
        comparer = Comparer(chat=pick(ChatSettings, node), rubric=node["rubric"], name="judge")
        compare = partial(_judged, comparer)
    else:
        compare = partial(_rewarded, make_score(config, opened, rows))
    return compare(*(draw(config, model, encode_prompts(config, model, rows), 1) for model in (opened, other)))


def _rewarded(score: Score, own: Drawn, others: Drawn) -> tuple[dict[str, Ratio], list[dict[str, Any]]]:
    """The completion with the higher reward is better; equal rewards are half a win."""
    written, rewards = [], []
    for side, drawn in (("from", own), ("against", others)):
        columns = score(drawn)
        rewards.append(drawn.by_origin(columns["reward"][:, 0].tolist()))
        written += records(drawn, columns, side)
    differences = [rewards[0][origin] - rewards[1][origin] for origin in rewards[0] if origin in rewards[1]]
    by_row = torch.tensor(differences, dtype=torch.float64)
    return {"win_rate": share_of((by_row.sign() + 1) / 2), "reward_difference": of_rows(by_row)}, written


def _judged(comparer: Comparer, own: Drawn, others: Drawn) -> tuple[dict[str, Ratio], list[dict[str, Any]]]:
    """The completion that the judge prefers in both orders is better; otherwise it is half a win."""
    prompts, first, second = own.by_origin(own.prompts), own.by_origin(own.texts), others.by_origin(others.texts)
    both = [origin for origin in first if origin in second]
    asked = [prompts[origin].record["prompt"] for origin in both]
    found = comparer.compare(asked, [first[origin] for origin in both], [second[origin] for origin in both])
    if found.first_failure:
        log.warning("judge: %s questions without a verdict; first: %s", dict(found.failures), found.first_failure)
    wins = [torch.nan if outcome is None else (outcome + 1) / 2 for outcome in found.outcomes]
    written = [
        {"origin": origin, "prompt": prompt, "from": first[origin], "against": second[origin], "outcome": outcome}
        for origin, prompt, outcome in zip(both, asked, found.outcomes, strict=True)
    ]
    return {"win_rate": share_of(torch.tensor(wins, dtype=torch.float64))}, written
