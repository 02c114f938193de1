"""A client of the chat completions of an OpenAI-compatible server."""

import asyncio
import contextlib
import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

import httpx
from aiolimiter import AsyncLimiter
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_attempt, wait_random_exponential

from alignlab.distributed.comm import num_ranks
from alignlab.errors import InputError
from alignlab.rewards.judge.cache import ReplyCache
from alignlab.rewards.judge.settings import ChatSettings
from alignlab.rewards.judge.verdicts import Failure

MAX_RESPONSE_BYTES = 2**20
SHOWN_CHARACTERS = 300
TRIAL = "Reply with the word ready."
BACK_OFF = wait_random_exponential(multiplier=1, max=60)

Verdict = TypeVar("Verdict")

logging.getLogger("httpx").setLevel(logging.WARNING)  # it logs every request


class RequestFailed(Exception):
    """A request without a reply.

    Args:
        failure: What happened.
        may_pass: Whether the same request may succeed later.
        retry_after: Seconds that the server asks to wait.
    """

    def __init__(self, failure: Failure, may_pass: bool, retry_after: float = 0.0):
        self.failure, self.may_pass, self.retry_after = failure, may_pass, retry_after
        super().__init__(failure.message)


class ChatClient:
    """Asks a chat model, many questions at the same time.

    A request that times out or loses its connection, and one with status 429 or 5xx, is repeated after a random,
    exponentially growing time, in addition to what the server asks for (``Retry-After``).

    Args:
        settings: How the model is asked.
        key: Key that is sent with each request, or None.
        name: Dotted key of the settings, for errors.

    Raises:
        InputError: The address is not valid, or the folder of the cache cannot be used.
    """

    def __init__(self, settings: ChatSettings, key: str | None, name: str):
        self.settings, self.name = settings, name
        self.headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
        self.address = _address(settings.endpoint, f"{name}.endpoint")
        self.certificates = httpx.create_ssl_context()  # reading them takes tens of milliseconds
        self.cache = ReplyCache(settings.cache, f"{name}.cache") if settings.cache is not None else None

    def check(self) -> None:
        """Ask one short question, without retries. A server that answers "too many requests" is there, and passes.

        Raises:
            InputError: There is no reply.
        """
        settings = self.settings
        reply = _run(self._ask_all([TRIAL], str, seconds=None, num_retries=0))[TRIAL]
        if isinstance(reply, Failure) and reply.kind != "busy":
            asked = f"{self.name}.endpoint={settings.endpoint} {self.name}.model={settings.model}"
            raise InputError(asked, reply.message, INSTEAD[reply.kind].format(name=self.name))

    def ask(
        self, texts: Sequence[str], read: Callable[[str], Verdict | Failure], seconds: float | None
    ) -> list[Verdict | Failure]:
        """Ask questions, equal ones once.

        Args:
            texts: One user message per question. Length S.
            read: Reads the verdict of a reply. A cached reply that it cannot read is replaced by a new one.
            seconds: Time for all questions together, after which those without a reply fail; None for no limit.

        Returns:
            The verdict of each question, or why there is none. Length S.
        """
        verdicts = {text: self._cached(text, read) for text in texts}
        missing = [text for text, verdict in verdicts.items() if isinstance(verdict, Failure)]
        if missing:
            verdicts |= _run(self._ask_all(missing, read, seconds, self.settings.num_retries))
        return [verdicts[text] for text in texts]

    def _cached(self, text: str, read: Callable[[str], Verdict | Failure]) -> Verdict | Failure:
        reply = self.cache.get(self._question(text)) if self.cache else None
        return Failure("not_asked", "") if reply is None else read(reply)

    async def _ask_all(
        self,
        texts: Sequence[str],
        read: Callable[[str], Verdict | Failure],
        seconds: float | None,
        num_retries: int,
    ) -> dict[str, Verdict | Failure]:
        """Ask different questions at the same time, and cancel what is not done in time."""
        settings, rate = self.settings, self.settings.requests_per_minute
        limiter = AsyncLimiter(1, 60 * num_ranks() / rate) if rate else contextlib.nullcontext()
        free = asyncio.Semaphore(settings.concurrency)
        retrying = AsyncRetrying(
            stop=stop_after_attempt(1 + num_retries),
            retry=retry_if_exception(lambda error: isinstance(error, RequestFailed) and error.may_pass),
            wait=_seconds_to_wait,
            reraise=True,
        )
        limits = httpx.Limits(max_connections=None)  # not here: the timeout would include the wait for a connection
        connections = {"limits": limits, "timeout": settings.timeout_seconds, "verify": self.certificates}
        async with httpx.AsyncClient(headers=self.headers, **connections) as http:

            async def post(text: str) -> str:
                async with free, limiter:
                    return await self._post(http, text)

            async def ask(text: str) -> Verdict | Failure:
                try:
                    reply = await retrying.copy()(post, text)
                except RequestFailed as error:
                    return error.failure
                if self.cache:
                    self.cache.put(self._question(text), reply)
                return read(reply)

            tasks = {text: asyncio.create_task(ask(text)) for text in texts}
            await asyncio.wait(tasks.values(), timeout=seconds)
            for task in tasks.values():
                task.cancel()
            await asyncio.gather(*tasks.values(), return_exceptions=True)
        late = Failure("out_of_time", f"the {seconds} s for all questions together were over")
        return {text: late if task.cancelled() else task.result() for text, task in tasks.items()}

    async def _post(self, http: httpx.AsyncClient, text: str) -> str:
        """Send one request and return its reply.

        Raises:
            RequestFailed: There is no reply.
        """
        seconds, content = self.settings.timeout_seconds, bytearray()
        try:
            async with (
                asyncio.timeout(seconds),  # httpx limits each single read only
                http.stream("POST", self.address, content=json.dumps(self._body(text)).encode()) as response,
            ):
                async for chunk in response.aiter_bytes():
                    content += chunk
                    if len(content) > MAX_RESPONSE_BYTES:
                        raise RequestFailed(Failure("no_text", "its response is too long"), may_pass=False)
        except (TimeoutError, httpx.TimeoutException) as error:
            raise RequestFailed(Failure("timed_out", f"no response within {seconds:g} s"), may_pass=True) from error
        except httpx.RequestError as error:
            why = f"{type(error).__name__}: {error}"
            raise RequestFailed(Failure("no_connection", why), may_pass=True) from error
        if not response.is_success:
            raise _status_error(response, bytes(content))
        return _reply(bytes(content))

    def _body(self, text: str) -> dict[str, Any]:
        settings = self.settings
        limits = {"temperature": settings.temperature, "max_tokens": settings.max_tokens}
        given = {name: value for name, value in limits.items() if value is not None}
        return {"model": settings.model, "messages": [{"role": "user", "content": text}], **given, **settings.request}

    def _question(self, text: str) -> str:
        """Hash of everything that decides the reply."""
        whole = json.dumps([self.settings.endpoint, self._body(text)], sort_keys=True)
        return hashlib.sha256(whole.encode()).hexdigest()


INSTEAD = {
    "timed_out": "Start the server, or raise {name}.timeout_seconds",
    "no_connection": "Start the server, or correct {name}.endpoint",
    "server_error": "Look at the log of the server",
    "refused": "Correct {name}.endpoint, .model, .api_key_env or .request; null leaves out .temperature or .max_tokens",
    "no_text": "Raise {name}.max_tokens for a model that reasons first, or correct {name}.endpoint",
}
"""What to do about a server that does not answer the first question, by the kind of failure."""


def _address(endpoint: str, asked: str) -> httpx.URL:
    try:
        address = httpx.URL(endpoint)
    except httpx.InvalidURL as error:
        raise InputError(f"{asked}={endpoint}", str(error), f"Type {asked}=http://HOST:PORT/v1") from error
    return address.copy_with(path=address.path.rstrip("/") + "/chat/completions")


def _run(coroutine: Coroutine[Any, Any, Verdict]) -> Verdict:
    """Run a coroutine to its end, also where an event loop runs already, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    with ThreadPoolExecutor(1) as other:
        return other.submit(asyncio.run, coroutine).result()


def _seconds_to_wait(state: RetryCallState) -> float:
    return state.outcome.exception().retry_after + BACK_OFF(state)


def _status_error(response: httpx.Response, content: bytes) -> RequestFailed:
    status, said = response.status_code, " ".join(content.decode(errors="replace").split())[:SHOWN_CHARACTERS]
    kind = "busy" if status == 429 else "server_error" if status >= 500 else "refused"
    failure = Failure(kind, f"the server answers {status} {response.reason_phrase}: {said or 'nothing more'}")
    return RequestFailed(failure, kind != "refused", _retry_after(response.headers.get("Retry-After", "")))


def _retry_after(value: str) -> float:
    """Seconds of the header, which is a number or a date; 0 if it cannot be read."""
    with contextlib.suppress(ValueError):
        seconds = float(value)
        return max(0.0, seconds) if math.isfinite(seconds) else 0.0
    with contextlib.suppress(ValueError, OverflowError):
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    return 0.0


def _reply(content: bytes) -> str:
    """The text of a response.

    Raises:
        RequestFailed: There is none.
    """
    try:
        reply = json.loads(content)["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError, RecursionError):
        reply = None
    if not isinstance(reply, str) or not reply.strip():
        said = content[:SHOWN_CHARACTERS].decode(errors="replace")
        raise RequestFailed(Failure("no_text", f"its response holds no text of a completion: {said!r}"), may_pass=False)
    return reply
