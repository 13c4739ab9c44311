"""Tests the chat page in headless Chromium with a real server. Each token takes a step of the model.

A scripted teacher (`world.py`) answers from what the model receives, so correct answers show that the image, the region
and the earlier turns arrived. What the browser draws is measured on its screenshots.
"""

from __future__ import annotations

import io
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from selenium.webdriver import ActionChains, Keys

from minigptv2.boxes import Box, iou
from minigptv2.draw import PREDICTED_COLORS
from tests.browser.driver import chromium, find_browser
from tests.browser.visitor import Visitor
from tests.browser.world import PLACES, SIZE

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(find_browser() is None, reason="needs apt-get install chromium chromium-driver"),
]
WAIT_S = 40


def test_the_box_of_a_refer_answer_is_at_the_right_place_on_the_screenshot(visitor: Visitor) -> None:
    answer = visitor.ask("[refer] give me the location of the blue one")
    assert answer.strip() == "here"
    assert iou(visitor.drawn_box(PREDICTED_COLORS[0]), PLACES["blue"]) > 0.9


def test_a_region_drawn_with_the_mouse_is_identified(visitor: Visitor) -> None:
    place = PLACES["green"]
    visitor.drag(Box(place.x1 + 20, place.y1 + 20, place.x2 - 20, place.y2 - 20))
    visitor.until(lambda: visitor.question().startswith("[identify] what is in {<"))
    visitor.one("#question").send_keys(Keys.ENTER)
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
    tab_to("|file|")
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
    tab_to("Caption with boxes", back=True)
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
        for selector in (
            "#send",
            "#again",
            "#new",
            "#save-text",
            "#save-image",
            "#tasks button",
            "#stage .tools button",
        ):
            shown = [e for e in visitor.all(selector) if e.is_displayed()]
            assert shown and all(e.rect["x"] >= 0 and e.rect["x"] + e.rect["width"] <= 391 for e in shown), selector


def test_examples_ask_their_question_about_their_picture(browser: Any, server: str) -> None:
    visitor = Visitor(browser, server)
    example = visitor.all(".example")[1]
    words = example.text
    example.click()
    visitor.until(lambda: visitor.question() == words and visitor.source())
    visitor.one("#question").send_keys(Keys.ENTER)
    visitor.answer(0)


def test_copy_and_download(visitor: Visitor) -> None:
    visitor.ask("[refer] the red one")
    visitor.driver.execute_script(
        "navigator.clipboard.writeText = (text) => { window.copied = text; return Promise.resolve(); };"
        "window.saved = []; const make = URL.createObjectURL.bind(URL);"
        "URL.createObjectURL = (blob) => { const r = new FileReader(); r.onload = () => window.saved.push(r.result);"
        "r.readAsDataURL(blob); return make(blob); }"
    )
    visitor.button("Copy").click()
    assert visitor.until(lambda: visitor.driver.execute_script("return window.copied")).startswith("{<")
    text, image = (visitor.saved(number, selector) for number, selector in enumerate(("#save-text", "#save-image")))
    document = json.loads(text)
    assert document["model"] == "tiny" and document["picture"] == {"width": SIZE[0], "height": SIZE[1]}
    assert iou(Box(*document["turns"][0]["boxes"][0]["box"]), PLACES["red"]) > 0.9
    pixels = np.asarray(Image.open(io.BytesIO(image)).convert("RGB"), dtype=int)
    ys, xs = np.nonzero(np.abs(pixels - np.array(PREDICTED_COLORS[0])).sum(-1) < 12)
    assert iou(Box(xs.min(), ys.min(), xs.max() + 1, ys.max() + 1), PLACES["red"]) > 0.9


def test_markup_is_shown_as_text_and_nothing_is_loaded_from_elsewhere(visitor: Visitor) -> None:
    hostile = "<img src=x onerror=window.hacked=1> <script>window.hacked=1</script> `${window.hacked=1}` {{hacked}}"
    visitor.ask(hostile)
    assert visitor.one(".turn .question").text == hostile
    assert visitor.driver.execute_script("return window.hacked === undefined")
    loaded = visitor.driver.execute_script("return performance.getEntriesByType('resource').map((e) => e.name)")
    address = visitor.driver.current_url
    assert all(name.startswith((address, "data:", "blob:")) for name in loaded)


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("broken.png", b"\x89PNG\r\n\x1a\n" + b"0" * 100, "damaged: the PNG does not begin with IHDR"),
        ("photo.heic", b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic" + b"\x00" * 64, "HEIC"),
        ("notes.txt", b"hello", "text"),
        ("empty.jpg", b"", "empty"),
    ],
)
def test_a_file_that_is_no_image_is_refused_with_the_reason(
    visitor: Visitor, tmp_path: Path, name: str, data: bytes, reason: str
) -> None:
    (tmp_path / name).write_bytes(data)
    shown = visitor.source()
    visitor.one("#file").send_keys(str(tmp_path / name))
    message = visitor.until(lambda: "refused" in (said := visitor.one("#stage .message").text) and said)
    assert reason in message and visitor.source() == shown
