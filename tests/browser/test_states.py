"""Tests each state of the page: what it says, how it looks on a desktop and a phone, and that axe-core finds nothing.

The screenshots are in the temporary folder of the test.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from selenium.webdriver import Keys

from minigptv2.predict.predictor import Predictor
from minigptv2.tasks import GroundedPhrase, segments
from tests.browser.driver import chromium, find_browser
from tests.browser.visitor import Visitor
from tests.browser.world import teacher
from tests.conftest import REPOSITORY
from tests.serve.running import running
from tests.serve.tiny import picture as noise
from tests.serve.tiny import tiny_predictor

AXE = REPOSITORY / "build/axe/package/axe.min.js"
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(find_browser() is None, reason="needs apt-get install chromium chromium-driver"),
]
DEVICES = {"desktop": (1280, 900), "phone": (390, 844)}
LONG = "7" * 400
"""With an answer, one fits into the 1024 positions of the model and two do not."""


def set_offline(driver: Any, offline: bool) -> None:
    driver.execute_cdp_cmd("Network.enable", {})
    speed = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    driver.execute_cdp_cmd("Network.emulateNetworkConditions", {"offline": offline, **speed})


def boxes(visitor: Visitor, picture: Path) -> None:
    visitor.upload(picture)
    visitor.ask("[grounding] Describe this image and point at what you mention.")
    visitor.ask("what about the green one?")
    visitor.ask("[grounding] again")


def streaming(visitor: Visitor, picture: Path) -> None:
    visitor.upload(picture)
    visitor.type("tell me a long story")
    visitor.one("#send").click()
    visitor.until(lambda: len(visitor.said(0)) > 20)


def refused(visitor: Visitor, picture: Path) -> None:
    file = picture.with_name("photo.heic")
    file.write_bytes(b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic" + b"\x00" * 64)
    visitor.one("#file").send_keys(str(file))
    visitor.until(lambda: "HEIC" in visitor.one("#stage .message").text)


def full(visitor: Visitor, picture: Path) -> None:
    visitor.upload(picture)
    visitor.ask(LONG)
    assert "The conversation is too long for the model" in visitor.ask(LONG)


def gone(visitor: Visitor, picture: Path) -> None:
    visitor.upload(picture)
    visitor.ask("what about the green one?")
    set_offline(visitor.driver, True)
    assert "The server does not answer. Your conversation is kept" in visitor.ask("and where is it?")


def right_to_left(visitor: Visitor, picture: Path) -> None:
    visitor.ask("מה יש בתמונה?")


STATES: dict[str, Callable[[Visitor, Path], None]] = {
    "empty": lambda visitor, picture: None,
    "image": lambda visitor, picture: visitor.upload(picture),
    "streaming": streaming,
    "boxes": boxes,
    "refused": refused,
    "full": full,
    "gone": gone,
    "right_to_left": right_to_left,
}


@pytest.fixture(scope="module")
def browsers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("devices")
    with (
        chromium(folder / "desktop", DEVICES["desktop"]) as desktop,
        chromium(folder / "phone", DEVICES["phone"]) as phone,
    ):
        yield {"desktop": desktop, "phone": phone}


@pytest.mark.skipif(not AXE.is_file(), reason="needs make test-browser, which fetches axe-core")
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("state", STATES)
def test_axe_finds_nothing(
    state: str, device: str, scheme: str, browsers: dict[str, Any], server: str, picture: Path, tmp_path: Path
) -> None:
    driver = browsers[device]
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    visitor = Visitor(driver, server)
    try:
        STATES[state](visitor, picture)
        driver.save_screenshot(str(tmp_path / f"{state}-{device}-{scheme}.png"))
        driver.execute_script(AXE.read_text())
        found = driver.execute_async_script("axe.run().then(arguments[0])")["violations"]
    finally:
        set_offline(driver, False)
    assert not [(one["id"], [node["html"] for node in one["nodes"]]) for one in found]
    assert driver.execute_script("return document.documentElement.scrollWidth") <= DEVICES[device][0]


@pytest.fixture
def fresh(browser: Any, server: str) -> Visitor:
    """A visitor without an image."""
    return Visitor(browser, server)


def generated_answers(count: int) -> list[str]:
    parts = ["<p>", "</p>", "a dog", " ", "{<1><2><30><40>}", "{<90><80><20><10>}", "{<1><2><300><4>}", "<delim>"]
    parts += ["{", "}", "{<1>", "<", "é", "\n", "{x}", "<p>cat</p> {<1><2><3><4>}<delim>{<5><6><7><8>}"]
    generator = random.Random(0)
    return ["".join(generator.choices(parts, k=generator.randrange(9))) for _ in range(count)]


@pytest.mark.parametrize("partial", [False, True])
def test_the_page_reads_markup_as_the_package_does(fresh: Visitor, partial: bool) -> None:
    texts = generated_answers(2000)
    script = (
        "const [texts, partial, done] = arguments;"
        "import('/page/markup.js').then(({ pieces }) => done(texts.map((text) => pieces(text, partial))))"
    )
    shown = fresh.driver.execute_async_script(script, texts, partial)
    for text, pieces in zip(texts, shown, strict=True):
        expected: list[Any] = []
        for piece in segments(text, 1, 1, partial=partial):
            if isinstance(piece, GroundedPhrase):
                sides = [[*sorted((b.x1, b.x2)), *sorted((b.y1, b.y2))] for b in piece.boxes]
                expected.append({"phrase": piece.phrase, "boxes": [[x1, y1, x2, y2] for x1, x2, y1, y2 in sides]})
            else:
                expected.append({"text": piece})
        assert pieces == expected, text


def test_a_full_context_offers_a_new_conversation(fresh: Visitor, picture: Path) -> None:
    full(fresh, picture)
    fresh.button("Ask in a new conversation").click()
    fresh.until(lambda: len(fresh.all(".turn")) == 1 and fresh.state(0) == "done")
    assert fresh.one(".question").text == LONG and fresh.source()


def test_a_server_that_returns_answers_the_kept_question(fresh: Visitor, picture: Path) -> None:
    try:
        gone(fresh, picture)
    finally:
        set_offline(fresh.driver, False)
    fresh.button("Try again").click()
    fresh.until(lambda: fresh.state(1) == "done")
    assert len(fresh.all(".turn")) == 2 and fresh.all(".answer")[1].text == "here"


def test_an_answer_that_breaks_off_says_so(browser: Any, tokenizer: Any, picture: Path) -> None:
    predictor: Predictor = tiny_predictor(tokenizer)
    with running(predictor, page=True, script=teacher, slow_s=0.03) as address:
        visitor = Visitor(browser, address)
        streaming(visitor, picture)
    said = visitor.answer(0)
    assert "Your conversation is kept" in said and said.startswith("red blue")
    assert visitor.button("Try again").is_enabled()


def test_the_same_file_twice_leaves_no_message(visitor: Visitor, picture: Path) -> None:
    visitor.ask("what about the green one?")
    visitor.one("#file").send_keys(str(picture))
    visitor.until(lambda: not visitor.all(".turn"))
    visitor.until(lambda: visitor.one("#stage .message").text == "")


def test_a_drop_anywhere_is_taken(fresh: Visitor) -> None:
    fresh.driver.execute_async_script(
        "const done = arguments[0], canvas = document.createElement('canvas'); canvas.width = 60; canvas.height = 20;"
        "canvas.toBlob((blob) => { const data = new DataTransfer(); data.items.add(new File([blob], 'a.png'));"
        "document.querySelector('footer').dispatchEvent("
        "new DragEvent('drop', { dataTransfer: data, bubbles: true, cancelable: true })); done(); })"
    )
    fresh.until(lambda: fresh.one(".frame img").is_displayed())


@pytest.mark.parametrize("size", [(1000, 50), (50, 1000), (10, 10), (700, 400)])
def test_an_image_keeps_its_aspect_ratio(fresh: Visitor, tmp_path: Path, size: tuple[int, int]) -> None:
    noise(1, size).save(tmp_path / "a.png")
    fresh.upload(tmp_path / "a.png")
    frame = fresh.frame()
    assert abs(frame["width"] / frame["height"] / (size[0] / size[1]) - 1) < 0.05
    assert max(frame["width"], frame["height"]) > 300 and fresh.one(".mat").rect["width"] > 300


def test_an_image_is_upright(fresh: Visitor, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    noise(1, (80, 40)).save(tmp_path / "a.jpg", exif=exif)
    fresh.upload(tmp_path / "a.jpg")
    assert fresh.frame()["height"] == pytest.approx(2 * fresh.frame()["width"], rel=0.05)


def test_one_scrolls_to_ones_own_question(fresh: Visitor) -> None:
    for _ in range(8):
        fresh.ask("what about the red one?\nand more\nand more")
    fresh.driver.execute_script("document.querySelector('#log').scrollTop = 0")
    fresh.ask("what is the last one?")
    log, asked = fresh.one("#log").rect, fresh.all(".question")[-1].rect
    assert log["y"] <= asked["y"] and asked["y"] + asked["height"] <= log["y"] + log["height"]


def test_newlines_and_directions_are_kept(fresh: Visitor) -> None:
    fresh.type("one")
    fresh.one("#question").send_keys(Keys.SHIFT, Keys.ENTER)
    fresh.one("#question").send_keys("two", Keys.ENTER)
    fresh.answer(0)
    assert fresh.one(".question").text == "one\ntwo"
    right_to_left(fresh, Path())
    assert fresh.all(".question")[1].value_of_css_property("direction") == "rtl"
    assert fresh.all(".question")[0].value_of_css_property("direction") == "ltr"


def test_buttons_with_nothing_to_do_are_disabled(fresh: Visitor, picture: Path) -> None:
    def enabled() -> set[str]:
        names = ("send", "again", "new", "save-image", "save-text", "clear")
        return {name for name in names if fresh.one(f"#{name}").get_property("disabled") is False}

    assert enabled() == set() and fresh.one("#mode").text == "No image: text only"
    fresh.upload(picture)
    assert enabled() == set() and not fresh.one("#mode").is_displayed()
    fresh.type("[refer] the red one")
    assert enabled() == {"send"}
    fresh.one("#question").send_keys(Keys.ENTER)
    fresh.answer(0)
    assert enabled() == {"again", "new", "save-image", "save-text"}
    fresh.one("#new").click()
    assert enabled() == set() and fresh.source() and not fresh.all(".box")


def test_tasks_are_words_with_the_identifier_as_tooltip(fresh: Visitor) -> None:
    buttons = {button.text: button.get_attribute("title") for button in fresh.all("#tasks button")}
    assert buttons["Caption with boxes"] == "[grounding]" and len(buttons) == 6
    assert fresh.one("h1").text == "tiny" and fresh.driver.title == "tiny - minigptv2"


def test_fields_of_a_phone_are_not_enlarged(browsers: dict[str, Any], server: str) -> None:
    """Phones zoom into a field whose text is smaller than 16 px."""
    visitor = Visitor(browsers["phone"], server)
    sizes = {field.value_of_css_property("font-size") for field in visitor.all("textarea, .options input")}
    assert sizes == {"16px"}
