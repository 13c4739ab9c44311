"""Builds the chat page: gradio provides layout, session and queue, and `page.js` the elements.

Images are inside the events, in both directions. Nothing is uploaded to a folder and no file is served. All text on the
page is data for `page.js`, never markup.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr
from fastapi import FastAPI

from minigptv2.corpora.sources import toy
from minigptv2.errors import DataError, MiniGPTv2Error
from minigptv2.predict.requests import Decoding
from minigptv2.serve.batcher import Busy
from minigptv2.serve.gradio_compat import custom_element, event_data, forbid_downloads, limit_sessions
from minigptv2.serve.service import Service, pieces
from minigptv2.serve.session import ChatTurn, Session, is_identify
from minigptv2.serve.uploads import data_url, decode_data_url
from minigptv2.tasks import BOX_TASK, TASKS, render_turn

UPDATE_INTERVAL_S = 0.05
"""The shortest time between two updates of an answer in the browser."""
MAX_SESSIONS = 500
SESSION_S = 3600.0
"""The number of conversations kept, and for how long after their last use."""
FONTS = ("ui-sans-serif", "system-ui", "sans-serif")
HINT = (
    "Choose an image, then ask about it. The buttons below start a question for one of the tasks of the model. A "
    "question without a task starts a free conversation. Phrases with a box are colored. Click one to show only its "
    "box."
)
FOOT = (
    "Enter sends, Shift+Enter starts a new line, Escape stops. To mark a region, drag on the image, or focus the image "
    "and press Enter."
)
EXAMPLES = '<div class="examples" role="group" aria-label="Examples"></div>'
LOG = (
    '<div class="log" role="log" aria-label="Conversation" aria-live="off" tabindex="0"></div>'
    '<div class="said" role="status" aria-live="polite"></div>'
)
FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class ExampleQuestion:
    """A question to try, and the image file it is about, if any."""

    question: str
    image: bytes | None


def load_examples(file: Path | None) -> list[ExampleQuestion]:
    """The first questions and images of a JSON lines file in the format of `predict`, or four drawn scenes.

    Raises `DataError` for a line or an image that cannot be read.
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
            data = (file.parent / image).read_bytes() if image else None
        except (ValueError, KeyError, IndexError, TypeError, OSError) as error:
            form = '{"image": "a.jpg", "turns": [{"question": ...}]}'
            raise DataError(f"{file}:{number}: expected {form}: {error}") from error
        examples.append(ExampleQuestion(str(question).strip(), data))
    return examples


def _drawn_examples() -> list[ExampleQuestion]:
    examples = []
    for corpus in ("grounding", "refer", "vqa", "detection"):
        sample = next(iter(toy.samples(corpus, 1, Path(), "val")))
        assert sample.image is not None, "the samples of these corpora have images"
        rendered = render_turn(sample.record.turns[0], sample.record.width or 1, sample.record.height or 1)
        examples.append(ExampleQuestion(rendered.question, sample.image))
    return examples


def mount_page(app: FastAPI, service: Service, examples: Path | None) -> FastAPI:
    """`app` with the page at `/`. Raises `DataError` for examples that cannot be read."""
    forbid_downloads()
    blocks = Page(service, load_examples(examples)).build()
    limit_sessions(blocks, MAX_SESSIONS)
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


class Controls(NamedTuple):
    """The components of the page that have events."""

    session: gr.State
    stage: gr.HTML
    talk: gr.HTML
    tasks: dict[str, gr.Button]
    question: gr.Textbox
    send: gr.Button
    stop: gr.Button
    again: gr.Button
    new: gr.Button
    save: gr.Button
    temperature: gr.Slider
    tokens: gr.Slider
    courier: gr.HTML
    gallery: gr.HTML


class Page:
    """Builds the page and handles its events."""

    def __init__(self, service: Service, examples: list[ExampleQuestion]) -> None:
        self._service = service
        self._examples = examples

    def build(self) -> gr.Blocks:
        """The layout with its events."""
        limits = self._service.limits
        with gr.Blocks(title=f"{self._service.name} - minigptv2", analytics_enabled=False) as blocks:
            self._connect(self._layout())
        blocks.queue(default_concurrency_limit=None, max_size=limits.max_batch + limits.max_waiting, api_open=False)
        return blocks

    def _layout(self) -> Controls:
        limits = self._service.limits
        session = gr.State(Session(), time_to_live=SESSION_S, delete_callback=Session.stop)
        gr.HTML(f"<h1>{escape(self._service.name)}</h1>", elem_id="title")
        with gr.Row(elem_id="columns"):
            with gr.Column(scale=1, min_width=320):
                max_bytes = limits.max_body_mib * 2**20 * 3 // 4 - 2**20  # base64 takes a third more
                stage = custom_element("stage", '<div class="stage"></div>', {"src": ""}, max_bytes=max_bytes)
            with gr.Column(scale=1, min_width=320):
                talk = custom_element("talk", LOG, [], hint=HINT)
                with gr.Row(elem_id="tasks"):
                    menu = {name: task.identifier for name, task in TASKS.items() if task.identifier}
                    tasks = {name: gr.Button(identifier, size="sm") for name, identifier in menu.items()}
                with gr.Row(elem_id="ask"):
                    question = _question_field(limits.max_text)
                    send = gr.Button("Send", variant="primary", elem_id="send")
                    stop = gr.Button("Stop", variant="stop", elem_id="stop", visible=False)
                with gr.Row(elem_id="actions"):
                    again = gr.Button("Regenerate", size="sm", elem_id="again")
                    new = gr.Button("New conversation", size="sm", elem_id="new")
                    save = gr.Button("Download", size="sm", elem_id="save")
                with gr.Accordion("Decoding options", open=False):
                    temperature = gr.Slider(0, 1.5, value=0, step=0.05, label="Temperature (0: greedy)")
                    most = limits.max_new_tokens
                    tokens = gr.Slider(1, most, value=min(256, most), step=1, label="Maximum answer length, tokens")
                courier = custom_element("courier", "<div></div>", None)
                gr.HTML(f"<p>{FOOT}</p>", elem_id="foot")
        gallery = custom_element("examples", EXAMPLES, self._gallery())
        return Controls(
            session=session,
            stage=stage,
            talk=talk,
            tasks=tasks,
            question=question,
            send=send,
            stop=stop,
            again=again,
            new=new,
            save=save,
            temperature=temperature,
            tokens=tokens,
            courier=courier,
            gallery=gallery,
        )

    def _connect(self, page: Controls) -> None:
        """Connect the events of the components to the methods below."""
        session, question = page.session, page.question
        conversation = [session, page.stage, page.talk, question]
        inputs = [session, question, page.temperature, page.tokens]
        hidden: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        answering = {
            "outputs": [session, page.talk, question, page.send, page.stop],
            "concurrency_limit": None,
            **hidden,
        }
        quick: dict[str, Any] = {"queue": False, **hidden}
        focus = "() => window.minigptv2.focusQuestion()"
        for ask in (page.send.click, question.submit):
            ask(self.ask, inputs, **answering)
        page.again.click(self.again, inputs, **answering)
        page.stop.click(self.stop, [session], None, **quick)
        page.new.click(self.new, [session], conversation, **quick).then(fn=None, js=focus)
        page.save.click(self.save, [session], page.courier, **quick)
        page.stage.upload(self.upload, [session, question], conversation, **quick)
        page.stage.select(self.region, [session, question], [session, question], **quick).then(fn=None, js=focus)
        page.gallery.select(self.example, [session], conversation, **quick).then(fn=None, js=focus)
        for name, button in page.tasks.items():
            button.click(_task(name), [session], [session, question], **quick).then(fn=None, js=focus)

    def _gallery(self) -> list[dict[str, str]]:
        shown = []
        for example in self._examples:
            image = self._service.images.open(example.image, to_show=True).shown if example.image else None
            shown.append({"question": example.question, "src": data_url(image) if image else ""})
        return shown

    async def ask(self, session: Session, question: str, temperature: float, tokens: float) -> AsyncIterator[list[Any]]:
        """Answer `question` as the next turn and yield the growing answer."""
        question = (question or "").strip()
        if session.busy:
            gr.Warning("An answer is in progress: wait for it or stop it.")
            yield [session, gr.skip(), gr.skip(), gr.skip(), gr.skip()]
        elif not question:
            gr.Info("Enter a question first.")
            yield [session, gr.skip(), gr.skip(), gr.skip(), gr.skip()]
        else:
            async for state in self._answer(session, question, temperature, tokens):
                yield state

    async def again(
        self, session: Session, question: str, temperature: float, tokens: float
    ) -> AsyncIterator[list[Any]]:
        """Answer the last question again. With a temperature above 0 the random seed is a new one."""
        if session.busy or not session.turns:
            gr.Info("An answer is in progress." if session.busy else "There is no answer yet.")
            yield [session, gr.skip(), gr.skip(), gr.skip(), gr.skip()]
            return
        session.seed += 1
        last = session.turns[-1]
        async for state in self._answer(session, last.question, temperature, tokens, draft=question, replaced=last):
            yield state

    async def _answer(
        self,
        session: Session,
        question: str,
        temperature: float,
        tokens: float,
        *,
        draft: str = "",
        replaced: ChatTurn | None = None,
    ) -> AsyncIterator[list[Any]]:
        """Answer a question. `draft` is the text of the question field meanwhile, `replaced` the turn to replace."""
        turn = ChatTurn(question)
        try:
            decoding = Decoding(int(tokens), float(temperature), seed=session.seed)
            self._service.check(question, decoding)
            ticket = await self._service.submit(session.request(question, replaced), decoding)
        except MiniGPTv2Error as error:
            if replaced:  # its answer stays
                gr.Warning(escape(f"Not answered: {error}."))
                yield [session, gr.skip(), gr.skip(), gr.skip(), gr.skip()]
                return
            session.turns.append(replace(turn, state="failed", note=f"Not answered: {error}."))
            yield [session, session.shown(), draft or question, gr.update(visible=True), gr.update(visible=False)]
            return
        session.ticket = ticket
        session.turns[:] = [each for each in session.turns if each is not replaced] + [turn]
        yield [session, session.shown(), draft, gr.update(visible=False), gr.update(visible=True)]
        async for state in self._grow(session, turn):
            yield state
        yield [session, session.shown(), gr.skip(), gr.update(visible=True), gr.update(visible=False)]

    async def _grow(self, session: Session, turn: ChatTurn) -> AsyncIterator[list[Any]]:
        """Read the answer from the ticket of the session and yield the page while it grows."""
        ticket = session.ticket
        assert ticket is not None, "the session has a ticket while an answer is in progress"
        shown_at = 0.0
        try:
            async for _ in pieces(ticket):
                turn.answer = ticket.text
                if time.monotonic() - shown_at > UPDATE_INTERVAL_S:
                    shown_at = time.monotonic()
                    yield [session, session.shown(), gr.skip(), gr.skip(), gr.skip()]
            turn.answer = ticket.text
            turn.state = "stopped" if ticket.finish_reason == "cancelled" else "done"
            turn.note = {"cancelled": "Stopped.", "length": "Cut at the maximum answer length."}.get(
                ticket.finish_reason or "", ""
            )
        except Exception:  # noqa: BLE001  logged by the batcher, and the visitor can ask again
            turn.state, turn.note = "failed", "The model failed on this question. See the log of the server."
        finally:
            if turn.state == "running":
                turn.state = "stopped"
            self._service.finish(ticket)

    def stop(self, session: Session) -> None:
        """Stop the answer in progress."""
        session.stop()

    def new(self, session: Session) -> list[Any]:
        """Delete the turns and keep the image."""
        session.begin(session.image)
        return [session, session.stage(), session.shown(), ""]

    async def upload(self, session: Session, question: str, event: gr.EventData) -> list[Any]:
        """Start a conversation about the image that the browser sent."""
        try:
            file = decode_data_url(str(event_data(event).get("picture", "")))
            image = await self._service.open_image(file, to_show=True)
        except (Busy, DataError) as error:
            return [session, {**session.stage(), "error": f"Image refused: {error}."}, gr.skip(), gr.skip()]
        session.begin(image)
        return [session, session.stage(), session.shown(), "" if is_identify(question) else gr.skip()]

    def region(self, session: Session, question: str, event: gr.EventData) -> list[Any]:
        """Keep the region drawn, and ask what is in it unless the field holds another question."""
        box = session.mark(_corners(event_data(event).get("region")))
        if box is None or not is_identify(question):
            return [session, gr.skip()]
        return [session, session.task_question(BOX_TASK.name)]

    async def example(self, session: Session, event: gr.EventData) -> list[Any]:
        """Start a conversation with an example."""
        index = event_data(event).get("index")
        if not isinstance(index, int) or not 0 <= index < len(self._examples):
            return [session, gr.skip(), gr.skip(), gr.skip()]
        example = self._examples[index]
        session.begin(await self._service.open_image(example.image, to_show=True) if example.image else None)
        return [session, session.stage(), session.shown(), example.question]

    def save(self, session: Session) -> dict[str, str]:
        """The conversation as a zip file for the browser."""
        if not session.turns:
            gr.Info("There is nothing to download yet.")
            return {}
        name = time.strftime("conversation-%Y%m%d-%H%M%S.zip")
        return {"name": name, "data": base64.b64encode(session.archive()).decode()}


def _question_field(max_length: int) -> gr.Textbox:
    return gr.Textbox(
        show_label=False,
        label="Question",
        placeholder="Ask about the image",
        lines=1,
        max_lines=6,
        max_length=max_length,
        elem_id="question",
        scale=4,
        autofocus=True,
    )


def _task(name: str) -> Callable[[Session], list[Any]]:
    """The handler of the button of a task."""

    def begin(session: Session) -> list[Any]:
        if TASKS[name].query == "box" and session.region is None:
            gr.Info("Draw a region on the image: drag with the mouse, or focus the image and press Enter.")
        return [session, session.task_question(name)]

    return begin


def _corners(value: Any) -> list[float] | None:
    """Four numbers, or None for anything else that a browser may send."""
    if not isinstance(value, list) or len(value) != 4:
        return None
    return [float(each) for each in value] if all(isinstance(each, int | float) for each in value) else None
