"""Fill a folder with the wheels that gpu_check.py needs on a machine without network that has PyTorch already.

    python benchmarks/gpu_wheels.py --into .whl
    python -m pip install --no-index --no-deps --target site .whl/*.whl      # on the other machine
    PYTHONPATH=site:src python benchmarks/gpu_check.py

Versions are those of constraints.txt. Packages without a wheel are built here; of bitsandbytes, whose wheel has a
library per CUDA version, only one is kept. The wheels together have 35 MiB.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGES = (
    "annotated-types",
    "antlr4-python3-runtime",
    "bitsandbytes",
    "datasets",
    "deepspeed",
    "dill",
    "hjson",
    "hydra-core",
    "multiprocess",
    "omegaconf",
    "platformdirs",
    "pydantic",
    "pydantic_core",
    "typing-inspection",
    "wandb",
)
"""What alignlab needs beyond torch, lightning, transformers, peft, accelerate, and their own dependencies."""

GLIBC = (17, 24, 27, 28)
"""Minor versions of glibc of the platforms that wheels may be made for."""


def main() -> None:
    """Download or build the wheels."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--into", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--python", default="3.12", help="version of Python there")
    parser.add_argument("--cuda", default="130", help="CUDA version of PyTorch there, without the dot")
    asked = parser.parse_args()
    asked.into.mkdir(parents=True, exist_ok=True)
    for package in pinned():
        if not download(package, asked.into, asked.python):
            build(package, asked.into)
    for wheel in asked.into.glob("bitsandbytes-*.whl"):
        keep_cuda(wheel, asked.cuda)
    print(f"{sum(file.stat().st_size for file in asked.into.glob('*.whl')) / 2**20:.0f} MiB in {asked.into}")


def pinned() -> list[str]:
    """``PACKAGES`` with the versions of constraints.txt."""
    lines = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8").split()
    versions = {line.partition("==")[0].lower(): line for line in lines}
    return [versions[package.lower()] for package in PACKAGES]


def download(package: str, into: Path, python: str) -> bool:
    """Download a wheel for Linux on x86-64; return whether there is one."""
    platforms = [word for minor in GLIBC for word in ("--platform", f"manylinux_2_{minor}_x86_64")]
    target = ["--only-binary=:all:", "--implementation", "cp", "--python-version", python, *platforms]
    return pip("download", *target, "--no-deps", "-d", str(into), package).returncode == 0


def build(package: str, into: Path) -> None:
    """Build a wheel from the source distribution, without the operators that DeepSpeed compiles when needed."""
    done = pip("wheel", "--no-deps", "--no-build-isolation", "-w", str(into), package, DS_BUILD_OPS="0")
    if done.returncode:
        sys.exit(f"{package}: {done.stderr}")


def pip(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run pip with further environment variables."""
    command = [sys.executable, "-m", "pip", words[0], "--quiet", *words[1:]]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)


def keep_cuda(wheel: Path, version: str) -> None:
    """Remove the libraries for other CUDA versions and other devices from the wheel of bitsandbytes."""
    with tempfile.TemporaryDirectory(dir=wheel.parent) as scratch, ZipFile(wheel) as whole:
        smaller = Path(scratch) / wheel.name
        with ZipFile(smaller, "w", ZIP_DEFLATED) as kept:
            for name in whole.namelist():
                library = Path(name).stem.removeprefix("libbitsandbytes_")
                if not name.endswith(".so") or library in ("cpu", f"cuda{version}"):
                    kept.writestr(name, whole.read(name))
        smaller.replace(wheel)


if __name__ == "__main__":
    main()
