"""Damaged files of a run folder, its checkpoints, its model and the token cache: the right result, or a refusal."""

import random
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from alignlab.data.table.cache import build_table
from alignlab.errors import InputError
from alignlab.types.rows import Demonstration
from tests.data.tokenise.tiny_tokenizers import CHATML, assistant, byte_tokenizer, token_settings, user
from tests.faults.cases import Case
from tests.faults.promises import done, kept, refused, same_run, told, tree
from tests.faults.runs import Ended, copy, isolated, run
from tests.faults.tiny import stopped, undisturbed, words
from tests.faults.ways import damage, ways_for
from tests.test_resume import weights

FLIPS = 12
"""Bits of each file of the cache that are flipped, one at a time."""

NOT_COMPARED = ("metrics.csv", "samples.jsonl")
"""Files without a checksum: what a damaged one said of the steps before is not restored."""


def cases(work: Path, seed: int, small: bool) -> list[Case]:
    """Every file in every way; few of them where it shall be quick."""
    chance = random.Random(seed)
    cached = _cache_cases(work / "cache", seed)
    if small:
        cached = chance.sample(cached, 14)
    whole, half = _prepare(work, "sft")
    stopping = _folder_cases("stopped sft", half, resumed, whole, seed)
    if small:
        return [*cached, *chance.sample(stopping, 4)]
    grpo, half_grpo = _prepare(work, "grpo")
    samples = _folder_cases("stopped grpo", half_grpo, resumed, grpo, seed, ["samples.jsonl", "metrics.csv"])
    model = [str(path.relative_to(whole)) for path in sorted((whole / "model").iterdir())]
    first = _began_from(work, whole)
    return [
        *cached,
        *stopping,
        *samples,
        *_folder_cases("init_from", whole, partial(begun_from, first), whole, seed, model),
        *_folder_cases("--from", whole, repeated, whole, seed, ["config.yaml"]),
    ]


def _prepare(work: Path, method: str) -> tuple[Path, Path]:
    """A finished run, and one of the same config that was killed on its way, each with the cache beside it."""
    whole = undisturbed(work, [(method, "single")], forked=True)[method, "single"]
    return whole, stopped(work / f"stopped-{method}", method)


def _began_from(work: Path, whole: Path) -> Path:
    home = work / "first"
    home.mkdir()
    copy(whole, home / "base")
    done(run(home, *words("sft"), "init_from=base", "trainer.max_steps=2"), home / "run")
    return home / "run"


def _folder_cases(
    name: str, source: Path, check, whole: Path, seed: int, files: Sequence[str] | None = None
) -> list[Case]:
    paths = [path for path in sorted(source.rglob("*")) if path.is_symlink() or path.is_file()]
    paths = [path for path in paths if files is None or str(path.relative_to(source)) in files]
    return [
        Case(f"{name} {path.relative_to(source)} {way}", partial(
            check, whole, source, str(path.relative_to(source)), way, random.Random(f"{seed} {path.name} {way}")
        ))
        for path in paths
        for way in ways_for(path)
    ]  # fmt: skip


def resumed(whole: Path, source: Path, name: str, way: str, chance: random.Random, folder: Path) -> None:
    """A stopped run goes on: it becomes the undisturbed one, or is refused with its checkpoints left alone."""
    copy(source, folder / "run")
    shutil.copytree(source.parent / "cache", folder / "cache")
    damage(folder / "run" / name, way, chance)
    before = {
        path: content for path, content in tree(folder / "run").items() if path.startswith(("checkpoints", "model"))
    }
    method = "grpo" if "grpo" in str(source) else "sft"
    ended = run(folder, *words(method), "resume=auto", seconds=60)
    if ended.code:
        told(ended, 1, 2)
        kept(before, folder / "run")
        return
    done(ended, folder / "run")
    if name in NOT_COMPARED:
        _same_weights(whole, folder / "run")
    else:
        same_run(whole, folder / "run")


def begun_from(
    first: Path, whole: Path, source: Path, name: str, way: str, chance: random.Random, folder: Path
) -> None:
    """A run that begins from a damaged model: as from the whole one, or refused, and the base is left as it was."""
    copy(source, folder / "base")
    damage(folder / "base" / name, way, chance)
    before = tree(folder / "base") if way != "fifo" else {}
    ended = run(folder, *words("sft"), "init_from=base", "trainer.max_steps=2", seconds=60)
    if before:
        kept(before, folder / "base")
    _right_or_refused(ended, first, folder / "run")


def repeated(whole: Path, source: Path, name: str, way: str, chance: random.Random, folder: Path) -> None:
    """A config that no longer says what it said is refused, or run as what it says: it is the user's text."""
    copy(source, folder / "base")
    damage(folder / "base" / name, way, chance)
    ended = run(folder, "train", "--from", "base", "run_dir=run", seconds=60)
    if ended.code:
        refused(ended)
    else:
        done(ended, folder / "run")


def _right_or_refused(ended: Ended, whole: Path, there: Path) -> None:
    if ended.code:
        told(ended, 1, 2)
        return
    done(ended, there)
    _same_weights(whole, there)


def _same_weights(whole: Path, there: Path) -> None:
    ours, theirs = weights(there), weights(whole)
    assert ours.keys() == theirs.keys() and all(ours[name].equal(theirs[name]) for name in ours), "other weights"


# --- the token cache, within this process -----------------------------------------------------------------------------


def _cache_cases(work: Path, seed: int) -> list[Case]:
    tokenizer = byte_tokenizer(template=CHATML)
    work.mkdir(parents=True)
    expected = list(_table(work, tokenizer))
    (table,) = (path for path in work.iterdir() if path.is_dir())
    files = sorted(path for path in table.rglob("*") if path.is_file())
    plan = [(path, way) for path in files for way in ways_for(path)] + [(path, "flip") for path in files] * (FLIPS - 1)
    return [
        Case(f"cache {path.name} {way} {number}", partial(
            _cached, work, str(path.relative_to(work)), way, random.Random(f"{seed} {number}"), tokenizer, expected
        ))
        for number, (path, way) in enumerate([*plan, (table, "remove")])
    ]  # fmt: skip


def _cached(source: Path, name: str, way: str, chance: random.Random, tokenizer, expected: list, folder: Path) -> None:
    """The same tokens, or a refusal."""
    copy(source, folder / "cache")
    damage(folder / "cache" / name, way, chance)

    def check() -> None:
        try:
            rows = list(_table(folder / "cache", tokenizer))
        except InputError:
            return
        assert rows == expected, "other tokens"

    isolated(check, seconds=10)


def _table(cache: Path, tokenizer):
    rows = [
        Demonstration(origin=f"f:{i}", messages=(user("Q" * i), assistant("A" * (i + 1))), columns={"margin": i / 2})
        for i in range(1, 30)
    ]
    return build_table(
        iter(rows),
        source_fingerprint="abc",
        tokenizer=tokenizer,
        settings=token_settings(),
        kind=Demonstration,
        workers=0,
        cache_dir=cache,
        fresh=False,
    )
