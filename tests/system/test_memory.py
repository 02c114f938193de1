"""What is freed stays in the process, and is not asked for again."""

import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, resource
from alignlab.system.memory import keep_freed_memory

if not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"):
    print(-1)
    raise SystemExit
import torch

{call}
torch.ones(2**24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    torch.ones(2**24)  # 64 MiB
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(call, monkeypatch, **environment):
    for name in ("MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "GLIBC_TUNABLES", "LD_PRELOAD"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    found = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(call=call)], capture_output=True, text=True, check=True
    )
    number = int(found.stdout)
    if number < 0:
        pytest.skip("another C library than glibc")
    return number


def test_pages_are_cleared_once(monkeypatch):
    many = page_faults("", monkeypatch)
    assert page_faults("keep_freed_memory()", monkeypatch) < 0.1 * many


def test_settings_of_the_user_are_left_alone(monkeypatch):
    many = page_faults("", monkeypatch)
    assert page_faults("keep_freed_memory()", monkeypatch, MALLOC_MMAP_THRESHOLD_="131072") > 0.5 * many
