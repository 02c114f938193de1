"""A disk that is full, read-only or gone, on a small one of its own."""

import contextlib
import shutil
from functools import partial
from pathlib import Path

from tests.faults.cases import Case
from tests.faults.mounts import remount, small_disk, unmount
from tests.faults.phases import Moment, reach
from tests.faults.promises import done, kept, same_run, status, told, tree, untouched
from tests.faults.runs import fork, run
from tests.faults.tiny import stopped, undisturbed, words

KIB_LEFT = (0, 4, 16, 64, 300, 1200, 2400, 5000, 7200, 9000, 12_000, 16_000, 22_000, 28_000)
"""Space that is left when a run begins or goes on. A checkpoint of the tiny run takes some 7 MiB, its model 2."""


def cases(work: Path, seed: int, small: bool) -> list[Case]:
    """Nothing where it shall be quick: ``make test`` mounts no disks."""
    if small:
        return []
    whole = undisturbed(work, [("sft", "single")], forked=True)["sft", "single"]
    begun = stopped(work / "begun", "sft").parent
    return [
        *(Case(f"a fresh run, {size} KiB left", partial(full, whole, None, size)) for size in KIB_LEFT),
        *(Case(f"a resumed run, {size} KiB left", partial(full, whole, begun, size)) for size in KIB_LEFT),
        *(Case(f"a full cache, {size} KiB left", partial(full_cache, whole, size)) for size in KIB_LEFT[:4]),
        Case("read-only", read_only),
        Case("read-only with a run", partial(read_only_run, begun)),
        Case("read-only cache", partial(read_only_cache, whole)),
        Case("becomes full", partial(lost_while_running, whole, "fill")),
        Case("is unmounted", partial(lost_while_running, whole, "unmount")),
        Case("run folder removed", partial(lost_while_running, whole, "remove")),
        Case("run folder renamed", partial(lost_while_running, whole, "rename")),
        Case("checkpoints removed", partial(lost_while_running, whole, "checkpoints")),
    ]


def full(whole: Path, begun: Path | None, kib: int, folder: Path) -> None:
    """The run fails in words, nothing that was there is lost, and with space it becomes the undisturbed one."""
    with small_disk(folder / "disk", "80M") as disk:
        (disk / "thesis.txt").write_text("ours")
        if begun is not None:
            shutil.copytree(begun / "run", disk / "run", symlinks=True)
        _fill(disk, kib)
        line = [*words("sft"), f"run_dir={disk}/run", "resume=auto"]
        ended = run(folder, *line)
        if ended.code:
            told(ended, 1, 2)
            assert status(disk / "run") != "done" or begun is not None, "done, without space for the model"
        else:
            done(ended, disk / "run")
        assert (disk / "thesis.txt").read_text() == "ours"
        assert begun is None or _has_whole_checkpoint(disk / "run"), "the checkpoint that was there is lost"
        (disk / "ballast").unlink()
        done(run(folder, *line), disk / "run")
        same_run(whole, disk / "run")


def full_cache(whole: Path, kib: int, folder: Path) -> None:
    """No space for the tokens: words, and right tokens later."""
    with small_disk(folder / "disk", "8M") as disk:
        _fill(disk, kib)
        line = [*words("sft"), f"data.cache_dir={disk}/cache", "resume=auto"]
        ended = run(folder, *line)
        if ended.code:
            told(ended, 1, 2)
        (disk / "ballast").unlink()
        done(run(folder, *line), folder / "run")
        same_run(whole, folder / "run")


def read_only(folder: Path) -> None:
    """Refused."""
    with small_disk(folder / "disk", "8M") as disk:
        remount(disk, "ro")
        told(run(folder, *words("sft"), f"run_dir={disk}/run"), 1, 2)


def read_only_run(begun: Path, folder: Path) -> None:
    """A run on a disk that cannot be written is refused, and stays as it is."""
    with small_disk(folder / "disk", "40M") as disk:
        shutil.copytree(begun / "run", disk / "run", symlinks=True)
        before = tree(disk)
        remount(disk, "ro")
        told(run(folder, *words("sft"), f"run_dir={disk}/run", "resume=auto"), 1, 2)
        untouched(before, disk)


def read_only_cache(whole: Path, folder: Path) -> None:
    """Refused, or tokenised elsewhere."""
    with small_disk(folder / "disk", "8M") as disk:
        remount(disk, "ro")
        ended = run(folder, *words("sft"), f"data.cache_dir={disk}/cache")
        if ended.code:
            told(ended, 1, 2)
        else:
            same_run(whole, folder / "run")


def lost_while_running(whole: Path, how: str, folder: Path) -> None:
    """The run ends in words and can be repeated; what is not its own stays."""
    with small_disk(folder / "disk", "80M") as disk:
        (disk / "thesis").mkdir()
        (disk / "thesis" / "chapter.tex").write_text("words")
        line = [*words("sft"), f"run_dir={disk}/run", "resume=auto"]
        (folder / "run").symlink_to(disk / "run")
        running = fork(folder, *line)
        is_running = reach(Moment("checkpoint", 0.5, nth=2), running, folder)
        assert is_running, "it ended before the disk was lost"
        _lose(disk, how)
        ended = running.wait(120)
        running.wait_for_all(5)
        if ended.code or how not in ("checkpoints", "remove", "rename"):
            told(ended, 1, 2)
        if how == "unmount":
            return
        (disk / "ballast").unlink(missing_ok=True)
        kept({"chapter.tex": tree(disk / "thesis")["chapter.tex"]}, disk / "thesis")
        done(run(folder, *line), disk / "run")
        same_run(whole, disk / "run")


def _lose(disk: Path, how: str) -> None:
    if how == "fill":
        _fill(disk, 8)
    elif how == "unmount":
        unmount(disk)
    elif how == "remove":
        shutil.rmtree(disk / "run", ignore_errors=True)
    elif how == "rename":
        (disk / "run").rename(disk / "elsewhere")
    elif how == "checkpoints":
        shutil.rmtree(disk / "run" / "checkpoints", ignore_errors=True)


def _fill(disk: Path, kib: int) -> None:
    """Leave so much space."""
    ballast = max(0, shutil.disk_usage(disk).free - kib * 1024)
    with contextlib.suppress(OSError), (disk / "ballast").open("wb") as file:  # a run may write at the same time
        for _ in range(ballast // 2**16):
            file.write(bytes(2**16))


def _has_whole_checkpoint(path: Path) -> bool:
    from alignlab.run_folder.storage import newest_valid

    return newest_valid(path / "checkpoints")[0] is not None
