"""Dtypes of weights, as they are typed."""

from typing import Literal

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
"""Dtype that weights are opened in; ``auto`` is that of the files."""
