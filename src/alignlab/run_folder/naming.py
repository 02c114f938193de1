"""Names of the parts of a run, from the targets in its config."""

import re


def name_of(target: str) -> str:
    """The name of a method or strategy: ``alignlab.methods.group_dpo.GroupDPO`` is ``group_dpo``.

    A class that has the name of its module but for capital letters has the module's: ``simpo.SimPO`` is ``simpo``.

    Args:
        target: Dotted path of a class or function.
    """
    *_, module, name = ["", *target.split(".")]
    if module.replace("_", "") == name.lower():
        return module
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()
