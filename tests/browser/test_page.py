"""Tests the chat page in headless Chromium with a real server. Each token takes a step of the model.

A scripted teacher (`world.py`) answers from what the model receives, so correct answers show that the image, the region
and the earlier turns arrived. What the browser draws is measured on its screenshots.
"""

from __future__ import annotations

import base64
import io
import json
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from selenium.webdriver import ActionChains, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from minigptv2.boxes import Box, iou
from minigptv2.draw import PREDICTED_COLORS
from minigptv2.predict.predictor import Predictor
from tests.browser.driver import chromium, find_browser
from tests.browser.world import PLACES, SIZE, draw_picture, teacher
from tests.serve.running import running
from tests.serve.tiny import tiny_predictor

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(find_browser() is None, reason="needs apt-get install chromium chromium-driver"),
]
WAIT_S = 40


@pytest.fixture(scope="module")
def server(tokenizer: Any) -> Iterator[str]:
    predictor: Predictor = tiny_predictor(tokenizer)
    with running(predictor, page=True, script=teacher, slow_s=0.03) as address:
        yield address


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("pictures") / "picture.png"
    draw_picture().save(file)
    return file


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with chromium(tmp_path_factory.mktemp("browser")) as driver:
        yield driver


class Visitor:
    """A visitor of the page: the actions, and what the page shows."""

    def __init__(self, driver: Any, address: str) -> None:
        self.driver = driver
        driver.get(address + "/")
        self.until(lambda: self.all("#question textarea") and self.all("#stage .pick"))

    def until(self, claim: Callable[[], Any]) -> Any:
        return WebDriverWait(self.driver, WAIT_S, poll_frequency=0.1).until(lambda _: claim())

    def all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector: str) -> WebElement:
        return self.all(selector)[0]

    def upload(self, file: Path) -> None:
        before = self.source()
        self.one("#picture-file").send_keys(str(file))
        self.until(lambda: self.source() not in ("", None, before) and self.one(".frame img").is_displayed())

    def source(self) -> str | None:
        return self.one(".frame img").get_attribute("src")

    def type(self, text: str) -> None:
        area = self.one("#question textarea")
        area.clear()
        area.send_keys(text)

    def ask(self, text: str) -> str:
        """Type a question, send it with Enter and return the complete answer as shown."""
        number = len(self.all(".turn"))
        self.type(text)
        self.one("#question textarea").send_keys(Keys.ENTER)
        return self.answer(number)

    def answer(self, number: int) -> str:
        """The answer of a turn, once it is complete."""
        self.until(lambda: len(self.all(".answer")) > number and self.state(number) != "running")
        return self.said(number)

    def said(self, number: int) -> str:
        """The answer of a turn so far. A growing answer is rebuilt continually."""
        script = "return document.querySelectorAll('.answer')[arguments[0]]?.innerText ?? ''"
        return self.driver.execute_script(script, number)

    def state(self, number: int) -> str | None:
        return self.driver.execute_script(
            "return document.querySelectorAll('.answer')[arguments[0]]?.dataset.state", number
        )

    def question(self) -> str:
        return self.one("#question textarea").get_property("value")

    def button(self, words: str) -> WebElement:
        return next(b for b in self.all("button, label.tool") if b.text.strip() == words and b.is_displayed())

    def screenshot(self) -> np.ndarray:
        self.driver.execute_script("document.querySelector('.frame').scrollIntoView({block: 'center'})")
        return np.asarray(Image.open(io.BytesIO(self.driver.get_screenshot_as_png())).convert("RGB"), dtype=int)

    def frame(self) -> dict[str, float]:
        return self.driver.execute_script(
            "const r = document.querySelector('.frame').getBoundingClientRect();"
            "return {x: r.x, y: r.y, width: r.width, height: r.height}"
        )

    def drawn_box(self, ink: tuple[int, int, int]) -> Box:
        """The extent, in pixels of the picture, of everything drawn in exactly `ink` over the picture's place."""
        pixels, frame = self.screenshot(), self.frame()
        left, top = round(frame["x"]), round(frame["y"])
        cut = pixels[top : top + round(frame["height"]), left : left + round(frame["width"])]
        ys, xs = np.nonzero(np.abs(cut - np.array(ink)).sum(-1) < 12)
        assert len(xs), f"nothing is drawn in {ink}"
        fx, fy = SIZE[0] / frame["width"], SIZE[1] / frame["height"]
        return Box(xs.min() * fx, ys.min() * fy, (xs.max() + 1) * fx, (ys.max() + 1) * fy)

    def drag(self, box: Box) -> None:
        """Draw `box`, in pixels of the picture, with the mouse."""
        self.driver.execute_script("document.querySelector('.frame').scrollIntoView({block: 'center'})")
        frame = self.frame()
        corners = [
            (int(frame["x"] + x * frame["width"] / SIZE[0]), int(frame["y"] + y * frame["height"] / SIZE[1]))
            for x, y in ((box.x1, box.y1), (box.x2, box.y2))
        ]
        chain = ActionChains(self.driver, duration=60)
        chain.w3c_actions.pointer_action.move_to_location(*corners[0]).pointer_down()
        chain.w3c_actions.pointer_action.move_to_location(*corners[1]).pointer_up()
        chain.perform()


@pytest.fixture
def visitor(browser: Any, server: str, picture: Path) -> Visitor:
    made = Visitor(browser, server)
    made.upload(picture)
    return made


def test_the_box_of_a_refer_answer_is_at_the_right_place_on_the_screenshot(visitor: Visitor) -> None:
    answer = visitor.ask("[refer] give me the location of the blue one")
    assert answer.strip() == "here"
    assert iou(visitor.drawn_box(PREDICTED_COLORS[0]), PLACES["blue"]) > 0.9


def test_a_region_drawn_with_the_mouse_is_identified(visitor: Visitor) -> None:
    place = PLACES["green"]
    visitor.drag(Box(place.x1 + 20, place.y1 + 20, place.x2 - 20, place.y2 - 20))
    visitor.until(lambda: visitor.question().startswith("[identify] what is in {<"))
    visitor.one("#question textarea").send_keys(Keys.ENTER)
    assert visitor.answer(0) == "the green one"
    assert "this region" in visitor.one(".turn .question").text


def test_the_second_turn_knows_the_first(visitor: Visitor) -> None:
    assert visitor.ask("what about the green one?") == "you asked about green"
    visitor.ask("and where is it?")
    assert iou(visitor.drawn_box(PREDICTED_COLORS[0]), PLACES["green"]) > 0.9


def test_phrases_and_boxes_share_colors_and_a_click_shows_one_alone(visitor: Visitor) -> None:
    visitor.ask("[grounding] Describe this image and point at what you mention.")
    phrases = visitor.all(".answer .phrase")
    assert [phrase.text for phrase in phrases] == ["the red one", "the blue one", "the green one"]
    for color, phrase, ink in zip(PLACES, phrases, PREDICTED_COLORS, strict=False):
        underline = phrase.value_of_css_property("border-bottom-color")
        assert underline in ("rgb({}, {}, {})".format(*ink), "rgba({}, {}, {}, 1)".format(*ink))
        name = visitor.one(f".box[data-phrase='the {color} one']")
        assert name.value_of_css_property("border-left-color") == underline
    phrases[1].click()
    visitor.until(lambda: len(visitor.all(".layer .box")) == 1)
    assert visitor.one(".layer .box").get_attribute("data-phrase") == "the blue one"
    visitor.button("Show all boxes").click()
    visitor.until(lambda: len(visitor.all(".layer .box")) == 3)


def test_an_answer_streams_and_stops_when_asked(visitor: Visitor) -> None:
    visitor.type("tell me a long story")
    visitor.one("#send").click()
    visitor.until(lambda: len(visitor.said(0)) > 20)
    assert visitor.state(0) == "running"
    early = len(visitor.said(0))
    visitor.until(lambda: len(visitor.said(0)) > early)
    visitor.one("#stop").click()
    assert "Stopped." in visitor.answer(0)
    said = visitor.said(0)
    time.sleep(0.5)
    assert visitor.said(0) == said and len(said) < 700
    assert visitor.ask("and the red one?") == "you asked about red"


def test_two_visitors_are_served_at_once_and_see_their_own(
    visitor: Visitor, server: str, picture: Path, tmp_path: Path
) -> None:
    with chromium(tmp_path) as other_driver:
        other = Visitor(other_driver, server)
        other.upload(picture)
        visitor.type("tell me a long story")
        visitor.one("#send").click()
        visitor.until(lambda: len(visitor.said(0)) > 5)
        assert other.ask("[refer] the red one").strip() == "here"
        assert visitor.state(0) == "running"  # the second was answered while the first still was
        assert iou(other.drawn_box(PREDICTED_COLORS[0]), PLACES["red"]) > 0.9
        assert len(other.all(".turn")) == len(visitor.all(".turn")) == 1
    visitor.one("#stop").click()
    visitor.answer(0)


def test_a_keyboard_alone_can_do_all(browser: Any, server: str, picture: Path) -> None:
    visitor = Visitor(browser, server)
    keys = ActionChains(browser)

    def focused() -> str:
        return browser.execute_script(
            "const e = document.activeElement; "
            "return [e.tagName, e.id, e.className, e.textContent.trim(), e.parentElement?.id].join('|')"
        )

    def tab_to(wanted: str, back: bool = False) -> None:
        for _ in range(60):
            if wanted in focused():
                return
            chain = ActionChains(browser)
            (
                chain.key_down(Keys.SHIFT).send_keys(Keys.TAB).key_up(Keys.SHIFT) if back else chain.send_keys(Keys.TAB)
            ).perform()
        raise AssertionError(f"no way to {wanted} by Tab; at {focused()}")

    browser.execute_script("document.activeElement.blur()")
    tab_to("picture-file")
    visitor.upload(picture)  # a file dialogue is the system's; its field has the focus
    tab_to("frame")
    keys.send_keys(Keys.ENTER).perform()  # a region in the middle, moved to the red rectangle
    for key, times in ((Keys.ARROW_LEFT, 15), (Keys.ARROW_UP, 15)):
        ActionChains(browser).send_keys(key * times).perform()
    ActionChains(browser).send_keys(Keys.ENTER).perform()
    visitor.until(lambda: visitor.question().startswith("[identify] what is in {<"))
    visitor.until(lambda: browser.switch_to.active_element.tag_name == "textarea")
    ActionChains(browser).send_keys(Keys.ENTER).perform()
    assert visitor.answer(0) == "the red one"
    tab_to("[grounding]", back=True)
    ActionChains(browser).send_keys(Keys.ENTER).perform()
    visitor.until(lambda: visitor.question().startswith("[grounding] Describe"))
    visitor.until(lambda: browser.switch_to.active_element.tag_name == "textarea")
    ActionChains(browser).send_keys(Keys.ENTER).perform()
    visitor.answer(1)
    tab_to("the blue one", back=True)
    ActionChains(browser).send_keys(" ").perform()
    visitor.until(lambda: len(visitor.all(".layer .box")) == 1)
    tab_to("Regenerate")
    ActionChains(browser).send_keys(Keys.ENTER).perform()
    visitor.until(lambda: len(visitor.all(".layer .box")) == 3)
    visitor.answer(1)
    tab_to("TEXTAREA", back=True)
    ActionChains(browser).send_keys("a long story").send_keys(Keys.ENTER).perform()
    visitor.until(lambda: len(visitor.said(2)) > 10)
    ActionChains(browser).send_keys(Keys.ESCAPE).perform()
    assert "Stopped." in visitor.answer(2)


def test_a_phone_can_do_all(server: str, picture: Path, tmp_path: Path) -> None:
    with chromium(tmp_path, size=(390, 844)) as driver:
        visitor = Visitor(driver, server)
        visitor.upload(picture)
        assert visitor.ask("[refer] the blue one").strip() == "here"
        assert iou(visitor.drawn_box(PREDICTED_COLORS[0]), PLACES["blue"]) > 0.85
        visitor.button("Draw a region").click()
        visitor.drag(PLACES["red"])
        visitor.until(lambda: visitor.question().startswith("[identify]"))
        visitor.one("#send").click()
        assert visitor.answer(1) == "the red one"
        assert driver.execute_script("return document.documentElement.scrollWidth") <= 390
        for selector in ("#send", "#again", "#new", "#save", "#tasks button", ".pick, label.tool"):
            shown = [e for e in visitor.all(selector) if e.is_displayed()]
            assert shown and all(e.rect["x"] >= 0 and e.rect["x"] + e.rect["width"] <= 391 for e in shown), selector


def test_examples_ask_their_question_about_their_picture(browser: Any, server: str) -> None:
    visitor = Visitor(browser, server)
    example = visitor.all(".example")[1]
    words = example.text
    example.click()
    visitor.until(lambda: visitor.question() == words and visitor.source())
    visitor.one("#question textarea").send_keys(Keys.ENTER)
    visitor.answer(0)


def test_copy_and_download(visitor: Visitor) -> None:
    visitor.ask("[refer] the red one")
    visitor.driver.execute_script(
        "navigator.clipboard.writeText = (text) => { window.copied = text; return Promise.resolve(); }"
    )
    visitor.button("Copy").click()
    assert visitor.until(lambda: visitor.driver.execute_script("return window.copied")).startswith("{<")
    visitor.driver.execute_script(
        "window.saved = null; const make = URL.createObjectURL.bind(URL);"
        "URL.createObjectURL = (blob) => { const r = new FileReader(); r.onload = () => { window.saved = r.result };"
        "r.readAsDataURL(blob); return make(blob); }"
    )
    visitor.one("#save").click()
    url = visitor.until(lambda: visitor.driver.execute_script("return window.saved"))
    archive = zipfile.ZipFile(io.BytesIO(base64.b64decode(url.partition(",")[2])))
    assert set(archive.namelist()) == {"picture.jpg", "answer-1.png", "conversation.json", "conversation.html"}
    box = json.loads(archive.read("conversation.json"))["turns"][0]["boxes"][0]["box"]
    assert iou(Box(*box), PLACES["red"]) > 0.9


def test_markup_is_shown_as_text_and_nothing_is_loaded_from_elsewhere(visitor: Visitor) -> None:
    hostile = "<img src=x onerror=window.hacked=1> <script>window.hacked=1</script> `${window.hacked=1}` {{hacked}}"
    visitor.ask(hostile)
    assert visitor.one(".turn .question").text == hostile
    assert visitor.driver.execute_script("return window.hacked === undefined")
    loaded = visitor.driver.execute_script("return performance.getEntriesByType('resource').map((e) => e.name)")
    address = visitor.driver.current_url
    assert all(name.startswith((address, "data:", "blob:")) for name in loaded)


def test_a_file_that_is_no_image_is_refused_with_the_reason(browser: Any, server: str, tmp_path: Path) -> None:
    visitor = Visitor(browser, server)
    file = tmp_path / "broken.png"
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + b"0" * 100)
    visitor.one("#picture-file").send_keys(str(file))
    visitor.until(lambda: "damaged: the PNG does not begin with IHDR" in visitor.one(".stage .message").text)
    text = tmp_path / "notes.txt"
    text.write_text("hello")
    visitor.one("#picture-file").send_keys(str(text))
    visitor.until(lambda: "not a JPEG, PNG or WebP image" in visitor.one(".stage .message").text)
