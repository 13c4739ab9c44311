"""The chat page: gradio's layout, session and queue around the elements of `page.js`.

Pictures travel inside events, in both directions: nothing is uploaded to a folder and no file is served. All text the
page shows is data for `page.js`, never markup.
"""

from __future__ import annotations

import asyncio
import base64
import inspect
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr
from fastapi import FastAPI

from minigptv2.corpora.sources import toy
from minigptv2.errors import DataError, MiniGPTv2Error
from minigptv2.predict.requests import Decoding
from minigptv2.serve.session import Session, Turn, is_identify
from minigptv2.serve.uploads import data_url, decode_data_url
from minigptv2.tasks import BOX_TASK, TASKS, render_turn

if TYPE_CHECKING:
    from minigptv2.serve.app import Service

SHOW_EVERY_S = 0.05
"""Shortest time between two states of a growing answer that are sent to a browser."""
KEPT_SESSIONS = 500
SESSION_S = 3600.0
"""Conversations that are kept, and for how long after their last use."""
FONTS = ("ui-sans-serif", "system-ui", "sans-serif")
HINT = (
    "Choose a picture, then ask about it. The buttons below begin a question for one of the model's tasks; without one "
    "it is free talk. Phrases that the model points at are coloured: click one to see its box alone."
)
FOOT = (
    "Enter sends, Shift+Enter makes a new line, Escape stops. To mark a region, drag on the picture, or focus it and "
    "press Enter."
)
EXAMPLES = '<div class="examples" role="group" aria-label="Examples"></div>'
LOG = (
    '<div class="log" role="log" aria-label="Conversation" aria-live="off" tabindex="0"></div>'
    '<div class="said" role="status" aria-live="polite"></div>'
)
FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Example:
    """A question to try, and the picture file it is about, if any."""

    question: str
    picture: bytes | None


def load_examples(file: Path | None) -> list[Example]:
    """The examples in a JSON lines file as `predict` reads it (first turns and pictures only), or a few drawn scenes.

    Raises `DataError` for a line or a picture that cannot be read: before the server starts.
    """
    if file is None:
        return _drawn_examples()
    examples = []
    for number, line in enumerate(file.read_bytes().split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
            question, image = fields["turns"][0]["question"], fields.get("image")
            image = next(iter(image), None) if isinstance(image, list) else image
            picture = (file.parent / image).read_bytes() if image else None
        except (ValueError, KeyError, IndexError, TypeError, OSError) as error:
            form = '{"image": "a.jpg", "turns": [{"question": ...}]}'
            raise DataError(f"{file}:{number}: want {form}: {error}") from error
        examples.append(Example(str(question).strip(), picture))
    return examples


def _drawn_examples() -> list[Example]:
    examples = []
    for corpus in ("grounding", "refer", "vqa", "detection"):
        sample = next(iter(toy.samples(corpus, 1, Path(), "val")))
        assert sample.image is not None, "these scenes are pictures"
        rendered = render_turn(sample.record.turns[0], sample.record.width or 1, sample.record.height or 1)
        examples.append(Example(rendered.question, sample.image))
    return examples


async def _no_download(url: str, cache_dir: str) -> str:
    raise gr.Error("this server fetches no address")


def _forbid_downloads() -> None:
    """gradio fetches an address that an event gives as a file, into a folder, and has no option against it."""
    assert inspect.iscoroutinefunction(gr.processing_utils.async_ssrf_protected_download), "gradio downloads otherwise"
    gr.processing_utils.async_ssrf_protected_download = _no_download


def mount_page(app: FastAPI, service: Service, examples: Path | None) -> FastAPI:
    """`app` with the page at `/`."""
    _forbid_downloads()
    blocks = Page(service, load_examples(examples)).build()
    blocks.state_session_capacity = KEPT_SESSIONS
    script = (FOLDER / "page.js").read_text()
    return gr.mount_gradio_app(
        app,
        blocks,
        path="/",
        allowed_paths=[],
        show_error=True,
        max_file_size=1,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        theme=gr.themes.Default(font=FONTS, font_mono=("ui-monospace", "monospace")),
        css=(FOLDER / "page.css").read_text(),
        head=f"<script>{script}</script>",
    )


class Page:
    """Builds the page and answers its events."""

    def __init__(self, service: Service, examples: list[Example]) -> None:
        self._service = service
        self._examples = examples

    def build(self) -> gr.Blocks:
        """The layout and its events."""
        limits = self._service.limits
        with gr.Blocks(title=f"{self._service.name} - minigptv2", analytics_enabled=False) as blocks:
            session = gr.State(Session(), time_to_live=SESSION_S, delete_callback=Session.stop)
            gr.HTML(f"<h1>{_escape(self._service.name)}</h1>", elem_id="title")
            with gr.Row(elem_id="columns"):
                with gr.Column(scale=1, min_width=320):
                    stage = _element(
                        "stage",
                        '<div class="stage"></div>',
                        {"src": ""},
                        max_bytes=limits.max_body_mib * 2**20 * 3 // 4 - 2**20,
                    )
                with gr.Column(scale=1, min_width=320):
                    talk = _element("talk", LOG, [], hint=HINT)
                    with gr.Row(elem_id="tasks"):
                        tasks = {
                            name: gr.Button(task.identifier, size="sm")
                            for name, task in TASKS.items()
                            if task.identifier
                        }
                    with gr.Row(elem_id="ask"):
                        question = gr.Textbox(
                            show_label=False,
                            label="Question",
                            placeholder="Ask about the picture",
                            lines=1,
                            max_lines=6,
                            max_length=limits.max_text,
                            elem_id="question",
                            scale=4,
                            autofocus=True,
                        )
                        send = gr.Button("Send", variant="primary", elem_id="send")
                        stop = gr.Button("Stop", variant="stop", elem_id="stop", visible=False)
                    with gr.Row(elem_id="actions"):
                        again = gr.Button("Regenerate", size="sm", elem_id="again")
                        new = gr.Button("New conversation", size="sm", elem_id="new")
                        save = gr.Button("Download", size="sm", elem_id="save")
                    with gr.Accordion("How it answers", open=False):
                        temperature = gr.Slider(
                            0, 1.5, value=0, step=0.05, label="Temperature (0: the likeliest words)"
                        )
                        tokens = gr.Slider(
                            1,
                            limits.max_new_tokens,
                            value=min(256, limits.max_new_tokens),
                            step=1,
                            label="Longest answer, tokens",
                        )
                    courier = _element("courier", "<div></div>", None)
                    gr.HTML(f"<p>{FOOT}</p>", elem_id="foot")
            gallery = _element("examples", EXAMPLES, self._gallery())

            answering: dict[str, Any] = {
                "outputs": [session, talk, question, send, stop],
                "concurrency_limit": None,
                "show_progress": "hidden",
                "api_visibility": "private",
            }
            quick: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
            focus = "() => window.minigptv2.focusQuestion()"
            for ask in (send.click, question.submit):
                ask(self.ask, [session, question, temperature, tokens], **answering)
            again.click(self.again, [session, question, temperature, tokens], **answering)
            stop.click(self.stop, [session], None, **quick)
            new.click(self.new, [session], [session, stage, talk, question], **quick).then(fn=None, js=focus)
            save.click(self.save, [session], courier, **quick)
            stage.upload(self.upload, [session, question], [session, stage, talk, question], **quick)
            stage.select(self.region, [session, question], [session, question], **quick).then(fn=None, js=focus)
            gallery.select(self.example, [session], [session, stage, talk, question], **quick).then(fn=None, js=focus)
            for name, button in tasks.items():
                button.click(_task(name), [session], [session, question], **quick).then(fn=None, js=focus)
        blocks.queue(default_concurrency_limit=None, max_size=limits.max_batch + limits.max_waiting, api_open=False)
        return blocks

    def _gallery(self) -> list[dict[str, str]]:
        shown = []
        for example in self._examples:
            picture = self._service.pictures.open(example.picture, to_show=True).shown if example.picture else None
            shown.append({"question": example.question, "src": data_url(picture) if picture else ""})
        return shown

    async def ask(self, session: Session, question: str, temperature: float, tokens: float) -> AsyncIterator[list[Any]]:
        """Answer `question` as the next turn, piece by piece."""
        question = (question or "").strip()
        if session.busy:
            gr.Warning("An answer is under way: wait for it, or stop it.")
            yield [session, gr.skip(), gr.skip(), gr.skip(), gr.skip()]
        elif not question:
            gr.Info("Write a question first.")
            yield [session, gr.skip(), gr.skip(), gr.skip(), gr.skip()]
        else:
            async for state in self._answer(session, question, temperature, tokens):
                yield state

    async def again(
        self, session: Session, question: str, temperature: float, tokens: float
    ) -> AsyncIterator[list[Any]]:
        """Answer the last question once more; with a temperature, by other dice."""
        if session.busy or not session.turns:
            gr.Info("An answer is under way." if session.busy else "There is no answer yet.")
            yield [session, gr.skip(), gr.skip(), gr.skip(), gr.skip()]
            return
        session.seed += 1
        last = session.turns[-1]
        async for state in self._answer(session, last.question, temperature, tokens, keep=question, instead=last):
            yield state

    async def _answer(
        self,
        session: Session,
        question: str,
        temperature: float,
        tokens: float,
        *,
        keep: str = "",
        instead: Turn | None = None,
    ) -> AsyncIterator[list[Any]]:
        """`keep` is what the question's field holds meanwhile; `instead` a turn that this one takes the place of."""
        turn = Turn(question)
        try:
            if len(question) > self._service.limits.max_text:
                raise DataError(f"{len(question)} characters: at most {self._service.limits.max_text}")
            decoding = Decoding(int(tokens), float(temperature), seed=session.seed)
            if not (decoding.max_new_tokens <= self._service.limits.max_new_tokens and decoding.temperature <= 2):
                raise DataError(f"at most {self._service.limits.max_new_tokens} tokens and a temperature of 2")
            request = session.request(question, instead)
            ticket = await asyncio.to_thread(self._service.batcher.submit, request, decoding)
        except MiniGPTv2Error as error:
            if instead:  # the answer there is stays
                gr.Warning(_escape(f"Not answered: {error}."))
                yield [session, gr.skip(), gr.skip(), gr.skip(), gr.skip()]
                return
            session.turns.append(replace(turn, state="failed", note=f"Not answered: {error}."))
            yield [session, session.shown(), keep or question, gr.update(visible=True), gr.update(visible=False)]
            return
        session.ticket = ticket
        session.turns[:] = [each for each in session.turns if each is not instead] + [turn]
        yield [session, session.shown(), keep, gr.update(visible=False), gr.update(visible=True)]
        async for state in self._grow(session, turn):
            yield state
        yield [session, session.shown(), gr.skip(), gr.update(visible=True), gr.update(visible=False)]

    async def _grow(self, session: Session, turn: Turn) -> AsyncIterator[list[Any]]:
        from minigptv2.serve.app import pieces

        ticket = session.ticket
        assert ticket is not None, "an answer that grows has a ticket"
        shown_at = 0.0
        try:
            async for _ in pieces(ticket):
                turn.answer = ticket.text
                if time.monotonic() - shown_at > SHOW_EVERY_S:
                    shown_at = time.monotonic()
                    yield [session, session.shown(), gr.skip(), gr.skip(), gr.skip()]
            turn.answer = ticket.text
            turn.state = "stopped" if ticket.finish_reason == "cancelled" else "done"
            turn.note = {"cancelled": "Stopped.", "length": "Cut at the longest answer."}.get(
                ticket.finish_reason or "", ""
            )
        except Exception:  # noqa: BLE001  logged by the batcher; the visitor's other turns go on
            turn.state, turn.note = "failed", "The model failed on this question; the server's log says more."
        finally:
            ticket.cancel()
            if turn.state == "running":
                turn.state = "stopped"
            self._service.metrics.ended(ticket)

    def stop(self, session: Session) -> None:
        """End the answer under way."""
        session.stop()

    def new(self, session: Session) -> list[Any]:
        """Forget the turns; keep the picture."""
        session.begin(session.picture)
        return [session, session.stage(), session.shown(), ""]

    async def upload(self, session: Session, question: str, event: gr.EventData) -> list[Any]:
        """Begin a conversation about the picture that the browser sent."""
        try:
            data = decode_data_url(str(_data(event).get("picture", "")))
            picture = await asyncio.to_thread(self._service.pictures.open, data, to_show=True)
        except DataError as error:
            return [session, {**session.stage(), "error": f"Not taken: {error}."}, gr.skip(), gr.skip()]
        session.begin(picture)
        return [session, session.stage(), session.shown(), "" if is_identify(question) else gr.skip()]

    def region(self, session: Session, question: str, event: gr.EventData) -> list[Any]:
        """Remember the region drawn, and ask what is in it unless another question is being written."""
        box = session.mark(_corners(_data(event).get("region")))
        if box is None or not is_identify(question):
            return [session, gr.skip()]
        return [session, session.task_question(BOX_TASK.name)]

    async def example(self, session: Session, event: gr.EventData) -> list[Any]:
        """Begin a conversation with an example."""
        index = _data(event).get("index")
        if not isinstance(index, int) or not 0 <= index < len(self._examples):
            return [session, gr.skip(), gr.skip(), gr.skip()]
        example = self._examples[index]
        data = example.picture
        session.begin(await asyncio.to_thread(self._service.pictures.open, data, to_show=True) if data else None)
        return [session, session.stage(), session.shown(), example.question]

    def save(self, session: Session) -> dict[str, str]:
        """The conversation as a file, handed to the browser."""
        if not session.turns:
            gr.Info("There is nothing to download yet.")
            return {}
        name = time.strftime("conversation-%Y%m%d-%H%M%S.zip")
        return {"name": name, "data": base64.b64encode(session.archive()).decode()}


def _task(name: str) -> Any:
    def begin(session: Session) -> list[Any]:
        if TASKS[name].query == "box" and session.region is None:
            gr.Info("Draw a region on the picture: drag with the mouse, or focus the picture and press Enter.")
        return [session, session.task_question(name)]

    return begin


def _element(kind: str, skeleton: str, value: Any, **props: Any) -> gr.HTML:
    """An element of `page.js`. The skeleton never holds the value: gradio would make markup of it."""
    events = "'upload', 'select'"
    return gr.HTML(
        value,
        html_template=skeleton,
        elem_id=kind,
        apply_default_css=False,
        js_on_load=f"/* {events} */ window.minigptv2.{kind}(element, props, trigger, watch);",
        **props,
    )


def _data(event: gr.EventData) -> dict[str, Any]:
    data = event._data
    return data if isinstance(data, dict) else {}


def _corners(value: Any) -> list[float] | None:
    """Four numbers, or None for anything else a browser may send."""
    if not isinstance(value, list) or len(value) != 4:
        return None
    return [float(each) for each in value] if all(isinstance(each, int | float) for each in value) else None


def _escape(text: str) -> str:
    from html import escape

    return escape(text)
