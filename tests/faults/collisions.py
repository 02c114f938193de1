"""Two runs at one place, and run folders that are no place for a run: refused before anything is written."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

from tests.commands import QUIET
from tests.faults.cases import Case, Skipped
from tests.faults.mounts import mounts, unmount
from tests.faults.promises import done, no_left_overs, refused, same_run, status, tree, untouched
from tests.faults.runs import fork, run
from tests.faults.tiny import undisturbed, words

PLAIN = [word for word in words("sft") if not word.startswith(("run_dir=", "data.cache_dir="))]
TYPO = [*QUIET, "trainer.max_steps=2", "data=jsonl", "data.path=rowz.jsonl"]
"""A mistake of every day, found only when data is opened."""

PLACES = {
    "here": ("run_dir=.", "work"),
    "nothing": ("run_dir=''", "work"),
    "null text": ("run_dir='   '", "work"),
    "root": ("run_dir=/", "work"),
    "home": ("run_dir={home}", "work"),
    "parent": ("run_dir=..", "work/inner"),
    "grandparent": ("run_dir={work}", "work/inner/most"),
    "repository": ("run_dir={repository}", "work"),
    "foreign files": ("run_dir={foreign}", "work"),
    "within a run's model": ("run_dir={finished}/model", "work"),
    "a file": ("run_dir={work}/notes.txt", "work"),
    "below a file": ("run_dir={work}/notes.txt/run", "work"),
    "a dangling link": ("run_dir={work}/dangling", "work"),
    "a link to foreign files": ("run_dir={work}/link", "work"),
    "a finished run": ("run_dir={finished}", "work"),
}
"""Run folders to be refused, and where one stands while typing it."""


def cases(work: Path, seed: int, small: bool) -> list[Case]:
    """Places with and without a typo; two runs at one place."""
    finished = undisturbed(work, [("sft", "single")], forked=True)["sft", "single"]
    faults = {"": PLAIN, " and a typo": TYPO, " and resume=auto and a typo": ["resume=auto", *TYPO]}
    places = [
        Case(f"{name}{fault}", partial(refused_place, finished, place, where, line))
        for name, (place, where) in PLACES.items()
        for fault, line in faults.items()
    ]
    if small:
        return places[1::3]
    return [
        *places,
        Case("a finished run, resumed with a typo", partial(lost_model, finished)),
        Case("a new folder and a typo", new_folder),
        Case("two in one folder", partial(one_folder, finished)),
        Case("two in one second", partial(one_second, finished)),
        Case("two into one cache", partial(one_cache, finished)),
        Case("two that resume one run", partial(one_folder, finished, "resume=auto")),
    ]


def refused_place(finished: Path, place: str, where: str, line: list[str], folder: Path) -> None:
    """A folder that holds other things is refused, and nothing in or around it is touched."""
    paths = _surroundings(finished, folder)
    before = tree(folder)
    environment = {"HOME": str(paths["home"]), "XDG_CACHE_HOME": str(folder.parent / f"{folder.name}-cache")}
    with jail(folder.parent / f"{folder.name}-jail") if place == "run_dir=/" else nullcontext() as root:
        ended = run(folder / where, place.format(**paths), *line, root=root, **environment)
        assert root is None or sorted(root.iterdir()) == sorted(root / path.name for path in Path("/").iterdir())
    untouched(before, folder)
    refused(ended)


def lost_model(finished: Path, folder: Path) -> None:
    """A typo beside a run that is there does not cost the run."""
    shutil.copytree(finished, folder / "run", symlinks=True)
    shutil.rmtree(folder / "run" / "checkpoints")
    before = tree(folder / "run")
    ended = run(folder, *words("sft"), "resume=auto", "init_from=TYPO")
    untouched({**before, ".lock": tree(folder / "run").get(".lock", before[".lock"])}, folder / "run")
    refused(ended)


def new_folder(folder: Path) -> None:
    """What a refused run has made itself, it takes away again."""
    before = tree(folder)
    refused(run(folder, "run_dir=run", "data.cache_dir=cache", *TYPO))
    after = {name for name in tree(folder) if not name.startswith("cache")}
    assert after == set(before), f"left behind: {sorted(after - set(before))}"


def one_folder(finished: Path, *line: str) -> None:
    """The second is refused, the first ends well."""
    *line, folder = line
    first, second = fork(folder, *words("sft"), *line), fork(folder, *words("sft"), *line)
    ended = sorted([first.wait(), second.wait()])
    done(ended[0], folder / "run")
    refused(ended[1])
    same_run(finished, folder / "run")


def one_second(finished: Path, folder: Path) -> None:
    """Each gets a folder of its own."""
    typed = [word for word in words("sft") if not word.startswith("run_dir=")]
    started = [fork(folder, *typed), fork(folder, *typed)]
    ended = [each.wait() for each in started]
    runs = sorted(folder.glob("runs/sft/*"))
    assert [each.code for each in ended] == [0, 0] and len(runs) == 2, (ended, runs)
    for each in runs:
        assert status(each) == "done"
        same_run(finished, each)


def one_cache(finished: Path, folder: Path) -> None:
    """Both tokenise at once, and both are right."""
    typed = [[word.replace("run_dir=run", f"run_dir={name}") for word in words("sft")] for name in "ab"]
    started = [fork(folder, *each) for each in typed]
    for name, each in zip("ab", started, strict=True):
        done(each.wait(), folder / name)
        same_run(finished, folder / name)
    no_left_overs(folder)


@contextmanager
def jail(place: Path) -> Iterator[Path]:
    """This machine's disk with a layer over it, so that what is removed below it stays in truth."""
    place.mkdir()
    if not mounts("tmpfs", place, "size=32M"):
        raise Skipped("run_dir=/ needs the right to mount, so that nothing can be lost")
    for name in ("upper", "work", "merged"):
        (place / name).mkdir()
    try:
        layers = f"lowerdir=/,upperdir={place}/upper,workdir={place}/work"
        if not mounts("overlay", place / "merged", layers):
            raise Skipped("run_dir=/ needs an overlay over the disk, so that nothing can be lost")
        try:
            yield place / "merged"
        finally:
            unmount(place / "merged")
    finally:
        unmount(place)


def _surroundings(finished: Path, folder: Path) -> dict[str, Path]:
    """A folder to work in, a home, a repository, a folder with foreign files and a finished run."""
    paths = {name: folder / name for name in ("work", "home", "repository", "foreign", "finished")}
    for name in ("work", "home", "foreign", "repository"):
        paths[name].mkdir()
        (paths[name] / "notes.txt").write_text("ours")
    (paths["work"] / "inner" / "most").mkdir(parents=True)
    (paths["work"] / "dangling").symlink_to("nowhere/at/all")
    (paths["work"] / "link").symlink_to(paths["foreign"])
    (paths["foreign"] / "thesis").mkdir()
    (paths["foreign"] / "thesis" / "chapter.tex").write_text("words")
    subprocess.run(["git", "init", "-q", str(paths["repository"])], check=True)
    shutil.copytree(finished, paths["finished"], symlinks=True)
    return paths
