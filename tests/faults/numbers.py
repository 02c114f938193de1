"""Numbers that are none: in data columns, in hyper-parameters, and as what a learning rate leads to."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from alignlab.cli.composition.compose import compose
from alignlab.config import compat, schema
from alignlab.errors import InputError
from tests.commands import QUIET
from tests.faults.cases import Case
from tests.faults.promises import done, refused, status, told
from tests.faults.runs import run
from tests.test_resume import weights

SPELLINGS = ("nan", "inf", "-inf", "1e400")
KEYS = {
    "sft": (
        "optimizer.lr",
        "optimizer.weight_decay",
        "method.neftune_alpha",
        "trainer.gradient_clip_val",
        "data.validation_size",
    ),
    "dpo": ("method.beta", "method.length_desensitisation", "method.reference_decay", "optimizer.betas.0"),
    "cpo": ("method.sft_weight",),
    "kto": ("method.desirable_weight",),
    "simpo": ("method.margin", "method.label_smoothing"),
    "reward_model": ("method.centring",),
    "grpo": (
        "method.kl_coef",
        "method.entropy_coef",
        "method.reward_kl_coef",
        "rollout.temperature",
        "rollout.top_p",
        "method.loss.clip_low",
    ),
    "ppo": ("method.gamma", "method.gae_lambda", "method.value_coef", "method.clip_value"),
}
"""Numbers that a run cannot do with."""

PAIR = {"prompt": "2 + 2?", "chosen": "4", "rejected": "5"}
Rows = list[dict[str, Any]]


def _with(column: str, value: Any, base: dict[str, Any] = PAIR) -> Rows:
    """Twelve good rows, the eighth with a value of its own."""
    rows = [{**base, column: 1.0, "n": str(number)} for number in range(12)]
    return [{**row, column: value if number == 7 else row[column]} for number, row in enumerate(rows)]


def _jsonl(rows: Rows, folder: Path) -> str:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return "rows.jsonl"


def _parquet(rows: Rows, folder: Path) -> str:
    pq.write_table(pa.Table.from_pylist(rows), folder / "rows.parquet")
    return "rows.parquet"


def _csv(rows: Rows, folder: Path) -> str:
    lines = [",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]
    (folder / "rows.csv").write_text("\n".join(lines) + "\n")
    return "rows.csv"


def _hundreds(rows: Rows, folder: Path) -> str:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row).replace("-77.5", "1e400") + "\n" for row in rows))
    return "rows.jsonl"


MARGIN = ["method=reward_model", "method.margin_column=margin"]
WEIGHT = ["method=reward_model", "method.weight_column=weight"]
SCORES = {"prompt": "2 + 2?", "completions": ["4", "5"]}
DATA: dict[str, tuple[list[str], Callable[[Rows, Path], str], Rows]] = {
    f"{column} {value} in {write.__name__[1:]}": (words, write, _with(column, value))
    for column, words in (("margin", MARGIN), ("weight", WEIGHT))
    for value in (float("nan"), float("inf"))
    for write in (_jsonl, _parquet, _csv)
}
DATA |= {
    "margin a text": (MARGIN, _jsonl, _with("margin", "much")),
    "margin missing": (MARGIN, _jsonl, [*_with("margin", 1.0), PAIR | {"n": "7"}]),
    "margin null": (MARGIN, _jsonl, _with("margin", None)),
    "margin of 400 digits": (MARGIN, _jsonl, _with("margin", 10**400)),
    "margin 1e400": (MARGIN, _hundreds, _with("margin", -77.5)),
    "scores NaN": (["method=group_dpo"], _parquet, [SCORES | {"scores": [float("nan"), 1.0]}] * 12),
    "scores of 400 digits": (["method=group_dpo"], _jsonl, [SCORES | {"scores": [10**400, 1]}] * 12),
    "label NaN": (["method=kto"], _parquet, [{"prompt": "a", "completion": "b", "label": float("nan")}] * 12),
    "label 2": (["method=kto"], _jsonl, [{"prompt": "a", "completion": "b", "label": 2}] * 12),
}  # fmt: skip
"""Files with one number that no method can learn from."""

DIVERGING = {
    "sgd 1e30": ["optimizer=sgd", "optimizer.lr=1e30", "trainer.gradient_clip_val=null"],
    "adamw 1e38": ["optimizer.lr=1e38"],
    "lion 1e20": ["optimizer=lion", "optimizer.lr=1e20"],
    "dpo beta 1e30": ["method=dpo", "method.beta=1e30", "optimizer.lr=10"],
    "half precision": ["model.dtype=float16", "optimizer=sgd", "optimizer.lr=1e5", "trainer.gradient_clip_val=null"],
}


def cases(work: Path, seed: int, small: bool) -> list[Case]:
    """Hyper-parameters within this process, data and divergence by runs."""
    keys = [(method, key) for method, names in KEYS.items() for key in names]
    found = [
        Case(f"{key}={value}", partial(hyper_parameter, method, key, value))
        for method, key in keys
        for value in SPELLINGS
    ]
    if small:
        return found[::16]
    found += [Case(f"data: {name}", partial(data, *given)) for name, given in DATA.items()]
    return found + [Case(f"diverges: {name}", partial(diverges, words)) for name, words in DIVERGING.items()]


def hyper_parameter(method: str, key: str, value: str, folder: Path) -> None:
    """Refused when the config is checked."""
    section, _, last = key.rpartition(".")
    word = f"{section}=[{value},0.9]" if last == "0" else f"{key}={value}"
    try:
        compat.check(schema.check(compose([f"method={method}", word])))
    except InputError:
        return
    raise AssertionError(f"method={method} {word} passes")


def data(words: list[str], write: Callable[[Rows, Path], str], rows: Rows, folder: Path) -> None:
    """Refused by the row."""
    name = write(rows, folder)
    sizes = ["trainer.max_steps=2", "data.global_batch_size=4", "data.validation_size=null", "data.cache_dir=cache"]
    ended = run(folder, *QUIET, "data=jsonl", f"data.path={name}", *sizes, "run_dir=run", *words)
    refused(ended)
    said = ended.output.partition("Refused")[2]
    assert "rows." in said, f"no row is named: {said[:300]}"


def diverges(words: list[str], folder: Path) -> None:
    """Exit code 1 in words, with curves and log kept; or a model of finite weights."""
    sizes = [
        "data.source.num_train=40",
        "data.source.num_validation=4",
        "data.global_batch_size=8",
        "data.cache_dir=cache",
    ]
    ended = run(folder, *QUIET, "trainer.max_steps=15", "trainer.max_epochs=-1", *sizes, "run_dir=run", *words)
    if ended.code == 0:
        done(ended, folder / "run")
        assert all(weight.isfinite().all() for weight in weights(folder / "run").values()), (
            "done, with weights that are no numbers"
        )
        return
    told(ended, 1, 2)
    kept = {path.name for path in (folder / "run").iterdir()} if (folder / "run").exists() else set()
    assert {"metrics.csv", "train.log", "summary.json"} <= kept, f"what is kept of a run that diverged: {sorted(kept)}"
    assert status(folder / "run") == "failed", status(folder / "run")
