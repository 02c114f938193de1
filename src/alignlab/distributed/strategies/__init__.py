"""Training strategies: each file of ``conf/strategy`` names a function of a module here, or any Lightning strategy."""

from alignlab.distributed.strategies.base import Sharding, full_shape, num_parameters, sharding_of

__all__ = ["Sharding", "full_shape", "num_parameters", "sharding_of"]
