"""The web page for talking to one model or comparing two, on Gradio."""

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from pydantic import TypeAdapter, ValidationError

from alignlab.chat.judged import Judged
from alignlab.chat.settings import SpeakerSettings
from alignlab.chat.speaker import Speaker
from alignlab.errors import InputError

log = logging.getLogger(__name__)

CSS = "#history .icon-button-wrapper { display: none }"
"""Without Gradio's button that empties the history on the page only."""

THEME = gr.themes.Base(font=("system-ui", "sans-serif"), font_mono=("ui-monospace", "monospace"))
"""With fonts of the system: the page loads nothing from elsewhere."""


@dataclass(frozen=True, kw_only=True)
class PageSettings:
    """What the page offers.

    Args:
        sampling: How answers are sampled at first.
        system: The system message at first; ``None`` for none.
        num_answers: Number of answers of each model to each question.
        votes: File of the rows that votes write.
    """

    sampling: SpeakerSettings
    system: str | None
    num_answers: int
    votes: Path


WHOLE_NUMBERS = {"top_k": 0, "max_tokens": 0}
"""Number of decimals of the fields that have none."""


class Page:
    """The components of the page, and what they do.

    Args:
        speakers: One model or more by name.
        settings: What the page offers.
    """

    def __init__(self, speakers: Mapping[str, Speaker], settings: PageSettings):
        self.speakers, self.settings = speakers, settings
        self.names = [name for name in speakers for _ in range(settings.num_answers)]
        self.several = len(self.names) > 1
        self.blocks = gr.Blocks(title="alignlab chat", analytics_enabled=False, fill_width=True)
        with self.blocks:
            self._lay_out()
            self._connect()

    def _lay_out(self) -> None:
        self.talk = gr.State(Judged())
        gr.Markdown("### " + " against ".join(f"`{name}`" for name in self.speakers))
        with gr.Sidebar(width=260):
            system = {"label": "System message", "info": "Of the next dialogue", "lines": 3, "elem_id": "system"}
            self.system = gr.Textbox(self.settings.system or "", **system)
            self.sampling = [
                gr.Number(value, label=name, precision=WHOLE_NUMBERS.get(name), elem_id=name)
                for name, value in asdict(self.settings.sampling).items()
            ]
            self.anew = gr.Button("New dialogue", elem_id="new")
            self.undo = gr.Button("Undo", elem_id="undo")
            self.tally = gr.Markdown(visible=self.several, elem_id="tally")
        height = "35vh" if self.several else "70vh"
        as_text = {"render_markdown": False, "latex_delimiters": [], "buttons": []}
        self.history = gr.Chatbot(show_label=False, height=height, **as_text, elem_id="history")
        with gr.Row(visible=self.several):
            candidates = [self._lay_out_candidate(index) for index in range(len(self.names))]
        self.boxes, self.choose = zip(*candidates, strict=True)
        with gr.Row(visible=self.several):
            self.tie = gr.Button("Tie: go on without a vote", interactive=False, elem_id="tie")
            self.none = gr.Button("None is good: take the question back", interactive=False, elem_id="none")
        with gr.Row():
            shown = {"show_label": False, "placeholder": "Type a question, and press Enter", "scale": 8}
            self.question = gr.Textbox(**shown, autofocus=True, elem_id="question")
            self.send = gr.Button("Send", variant="primary", min_width=80, elem_id="send")
            self.stop = gr.Button("Stop", variant="stop", min_width=80, interactive=False, elem_id="stop")

    def _lay_out_candidate(self, index: int) -> tuple[gr.Textbox, gr.Button]:
        with gr.Column(min_width=240):
            shown = {"label": self.names[index], "lines": 6, "max_lines": 24, "interactive": False}
            box = gr.Textbox(**shown, elem_id=f"answer-{index}")
            return box, gr.Button("This one is best", interactive=False, elem_id=f"choose-{index}")

    def _connect(self) -> None:
        shown = [
            *(self.history, self.question, self.send, self.stop, self.anew, self.undo, self.tie, self.none, self.tally),
            *(*self.boxes, *self.choose),
        ]
        show = {"outputs": shown, "show_progress": "hidden"}
        asked = [self.talk, self.question, self.system, *self.sampling]
        gr.on([self.send.click, self.question.submit], self._ask, asked, **show)
        self.stop.click(_stop, self.talk, queue=False)
        steps = {
            self.anew: Judged.begin,
            self.undo: Judged.take_back,
            self.none: Judged.take_back,
            self.tie: Judged.tie,
        }
        steps |= {button: partial(self._vote, index) for index, button in enumerate(self.choose)}
        for button, step in steps.items():
            button.click(partial(self._step, step), self.talk, **show)

    def _ask(self, talk: Judged, question: str, system: str, *sampling: float) -> Iterator[dict[Any, Any]]:
        """Sample the answers, and show each piece."""
        if not question.strip() or talk.candidates:
            gr.Info("Choose an answer first, or press Tie" if talk.candidates else "Type a question first")
            yield {self.talk: gr.skip()}
            return
        yield {self.question: ""}
        try:
            settings = _checked(dict(zip(asdict(self.settings.sampling), sampling, strict=True)))
            if not talk.dialogue and system.strip():
                talk.dialogue.append({"role": "system", "content": system})
            for _ in talk.ask(question, self.speakers, settings, self.settings.num_answers):
                yield self._view(talk, sampling=True)
        except Exception as error:
            _tell(error)
            yield self._view(talk) | {self.question: question}
        else:
            yield self._view(talk)

    def _vote(self, index: int, talk: Judged) -> None:
        talk.vote(index, self.settings.votes)

    def _step(self, step: Callable[[Judged], str | None], talk: Judged) -> dict[Any, Any]:
        """Change the dialogue; a question that is taken back can be typed anew."""
        try:
            question = step(talk)
        except (InputError, OSError) as error:
            _tell(error)
            question = None
        return self._view(talk) | {self.question: question or ""}

    def _view(self, talk: Judged, sampling: bool = False) -> dict[Any, Any]:
        """What every component shows."""
        messages = [message for message in talk.dialogue if message["role"] != "system"]
        if not self.several:
            messages += [{"role": "assistant", "content": one.text} for one in talk.candidates]
        texts = [one.text for one in talk.candidates] or [""] * len(self.names)
        votes_wanted = gr.update(interactive=self.several and bool(talk.candidates) and not sampling)
        at_rest = gr.update(interactive=not sampling)
        # Gradio takes every message for HTML, and an answer has to be judged as it is.
        messages = [message | {"content": escape(message["content"])} for message in messages]
        view = {self.history: messages, self.stop: gr.update(interactive=sampling)}
        view |= {self.send: gr.update(interactive=not talk.candidates), self.anew: at_rest, self.undo: at_rest}
        view |= dict.fromkeys((self.tie, self.none, *self.choose), votes_wanted)
        view |= dict(zip(self.boxes, texts, strict=True))
        wins = "; ".join(f"{talk.wins[name]} for `{name}`" for name in self.speakers)
        return view | {self.tally: f"Votes of this page: {wins}"}


def _stop(talk: Judged) -> None:
    talk.stopped = True


def _checked(sampling: Mapping[str, Any]) -> SpeakerSettings:
    """The settings as typed on the page.

    Raises:
        InputError: A field is empty or out of its range.
    """
    try:
        return TypeAdapter(SpeakerSettings).validate_python(sampling)
    except ValidationError as error:
        wrong = error.errors()[0]
        name = wrong["loc"][0]
        raise InputError(f"{name}={sampling[name]}", wrong["msg"], "Type another value") from error


def _tell(error: Exception) -> None:
    """Show an error on the page; one that nobody foresaw in the terminal too."""
    gr.Warning(str(error))
    if not isinstance(error, InputError):
        log.error("The page goes on after an error", exc_info=error)


def launch(page: Page, host: str, port: int) -> None:
    """Serve a page in the background, without any of Gradio's services on the internet.

    Args:
        page: The page.
        host: Address to listen at.
        port: Port to listen at.
    """
    page.blocks.launch(
        **{"server_name": host, "server_port": port, "prevent_thread_lock": True, "quiet": True},
        **{"share": False, "run_history": False, "enable_monitoring": False, "mcp_server": False, "ssr_mode": False},
        **{"theme": THEME, "css": CSS, "footer_links": []},
    )


def serve(page: Page, host: str, port: int) -> None:
    """Serve a page until the process is asked to end.

    Args:
        page: The page.
        host: Address to listen at.
        port: Port to listen at.
    """
    launch(page, host, port)
    print(f"http://{host}:{port} (Ctrl-C ends it)", flush=True)
    page.blocks.block_thread()
