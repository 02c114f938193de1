"""How a judge is asked, and the checks before the first question."""

import importlib.util
import ipaddress
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

from pydantic import Field

from alignlab.errors import InputError
from alignlab.rewards.external_rules import url_fault
from alignlab.system.credentials import secret
from alignlab.types.settings import Settings

if TYPE_CHECKING:
    from alignlab.rewards.judge.client import ChatClient

PACKAGES = ("httpx", "tenacity", "aiolimiter")


@dataclass(frozen=True, kw_only=True)
class ChatSettings(Settings):
    """A chat model behind an OpenAI-compatible server, and how it is asked.

    Args:
        endpoint: Address of the interface, to which ``/chat/completions`` is appended: ``http://127.0.0.1:8000/v1``.
        model: Name of the model at the server.
        api_key_env: Name of the environment variable that holds the key; None sends no key. A server on this machine
            may do without the variable.
        temperature: Sampling temperature; None for that of the server.
        max_tokens: Maximum tokens of a reply; None for that of the server.
        request: Further fields of the request.
        timeout_seconds: Timeout of one request, up to the last byte of its response.
        num_retries: Number of retries after a request that may succeed later (``client.ChatClient``).
        concurrency: Maximum number of requests of this process at the same time.
        requests_per_minute: Maximum rate of requests, shared evenly by the processes of a run; None for no limit.
        cache: Folder in which replies are kept; None for none.
    """

    endpoint: str
    model: str
    api_key_env: Annotated[str, Field(pattern="^[A-Z_][A-Z0-9_]*$")] | None  # a key itself would have small letters
    temperature: Annotated[float, Field(ge=0)] | None
    max_tokens: Annotated[int, Field(ge=1)] | None
    request: dict[str, Any]
    timeout_seconds: Annotated[float, Field(gt=0)]
    num_retries: Annotated[int, Field(ge=0)]
    concurrency: Annotated[int, Field(ge=1)]
    requests_per_minute: Annotated[float, Field(gt=0)] | None
    cache: str | None


def open_client(settings: ChatSettings, name: str) -> "ChatClient":
    """Make a client, and ask the server one short question.

    Args:
        settings: How the judge is asked.
        name: Dotted key of the settings, for errors.

    Raises:
        InputError: A package is missing, the address or the key is not valid, the cache cannot be used, or the server
            does not answer.
    """
    if missing := [package for package in PACKAGES if importlib.util.find_spec(package) is None]:
        raise InputError(name, f"{', '.join(missing)} is not installed", "Type pip install 'alignlab[judge]'")
    from alignlab.rewards.judge.client import ChatClient

    client = ChatClient(settings, find_key(settings, name), name)
    client.check()
    return client


def find_key(settings: ChatSettings, name: str) -> str | None:
    """The key for the server, or None if none is sent.

    Args:
        settings: How the judge is asked.
        name: Dotted key of the settings, for errors.

    Raises:
        InputError: The address is not valid, there is no such variable, or its value cannot be a key.
    """
    if fault := url_fault(settings.endpoint):
        raise InputError(f"{name}.endpoint={settings.endpoint}", fault, f"Type {name}.endpoint=http://HOST:PORT/v1")
    variable = settings.api_key_env
    if variable is None:
        return None
    if not os.environ.get(variable):
        if _is_local(settings.endpoint):
            return None
        why = f"{settings.endpoint} is another machine, and there is no key in the environment"
        instead = f"Type export {variable}=KEY first, or {name}.api_key_env=null for a server that asks for none"
        raise InputError(f"{name}.api_key_env={variable}", why, instead)
    key = secret(variable)
    if not (key.isascii() and key.isprintable()) or " " in key:
        why = "its value holds a blank, a line break or another character that no key has"
        raise InputError(f"{name}.api_key_env={variable}", why, f"Type export {variable}=KEY")
    return key


def _is_local(endpoint: str) -> bool:
    host = urlsplit(endpoint).hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name
        return False
