"""Train a model: ``python train.py [group=option] [key=value]``, the same as ``alignlab train``."""

import sys

from alignlab.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
