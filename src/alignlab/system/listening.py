"""Whether a server can listen at an address, asked before anything slow is done for it."""

import socket

from alignlab.errors import InputError


def address_error(host: str, port: int) -> InputError | None:
    """What hinders a server from listening at an address; ``None`` if nothing does.

    Args:
        host: Name or number of an address of this machine.
        port: Port.
    """
    try:
        with socket.create_server((host, port)):
            return None
    except OSError as error:
        why = error.strerror or str(error)
        return InputError(f"host={host} port={port}", why, "Type another port, or host=127.0.0.1")
