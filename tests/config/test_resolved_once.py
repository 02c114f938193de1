"""From the command line to the run a config is resolved once, in ``schema.check``, and never changed after that."""

import json

import pytest
from omegaconf import OmegaConf

from alignlab import run
from tests.commands import QUIET, alignlab, summary


class Frozen(dict):
    """A dict that cannot be changed."""

    def _refuse(self, *arguments, **options):
        raise AssertionError("the config is changed")

    __setitem__ = __delitem__ = __ior__ = update = pop = popitem = setdefault = clear = _refuse


def frozen(tree):
    if isinstance(tree, dict):
        return Frozen({key: frozen(value) for key, value in tree.items()})
    return [frozen(value) for value in tree] if isinstance(tree, list) else tree


@pytest.fixture
def resolutions(monkeypatch):
    """Calls that resolve a config."""
    calls, to_container = [], OmegaConf.to_container

    def counted(cfg, *arguments, resolve=False, **options):
        calls.extend([cfg] if resolve and "disable_existing_loggers" not in cfg else [])  # Hydra's logging
        return to_container(cfg, *arguments, resolve=resolve, **options)

    monkeypatch.setattr(OmegaConf, "to_container", counted)
    return calls


@pytest.mark.parametrize("with_file", [False, True])
def test_a_config_is_resolved_once(with_file, resolutions, tmp_path, monkeypatch):
    """With a DeepSpeed file too, whose strings are taken as they stand."""
    seen = []
    monkeypatch.setattr(run, "fit", lambda config, command: seen.append(config))
    file = tmp_path / "deepspeed.json"
    file.write_text(json.dumps({"gradient_clipping": 0.5, "comment": "${trainer.devices}"}))
    words = ["strategy=deepspeed_z2", f"strategy.config_file={file}"] if with_file else []
    assert alignlab("train", *QUIET, *words) == 0
    assert len(resolutions) == 1
    if with_file:
        assert seen[0]["strategy"]["config"]["comment"] == "${trainer.devices}"
        assert seen[0]["trainer"]["gradient_clip_val"] == 0.5


def test_nothing_changes_the_config_of_a_run(tmp_path, monkeypatch):
    fit, prepare = run.fit, run.prepare
    monkeypatch.setattr(run, "fit", lambda config, command: fit(frozen(config), command))
    monkeypatch.setattr(run, "prepare", lambda *given: (frozen((made := prepare(*given))[0]), made[1]))
    small = ["trainer.max_steps=1", "data.source.num_train=64", "data.source.num_validation=8", "peft=lora"]
    assert alignlab("train", *QUIET, *small, f"run_dir={tmp_path / 'run'}") == 0
    assert summary(tmp_path / "run")["status"] == "done"
