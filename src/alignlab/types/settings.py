"""Settings that belong together, held by one argument and typed one by one."""


class Settings:
    """Base of dataclasses whose fields stand in a config beside the other arguments of what takes them.

    A constructor with an argument annotated ``reference: ReferenceSettings`` is configured by the fields of
    ``ReferenceSettings``, so that ``method.reference_decay=0.9`` needs no level of its own.
    """
