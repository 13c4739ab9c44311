"""A visitor of the page in headless Chromium: the actions, and what the page shows."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from selenium.webdriver import ActionChains, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from minigptv2.boxes import Box
from tests.browser.world import SIZE

WAIT_S = 40


class Visitor:
    """Acts on the page of the server at `address` and reads what it shows."""

    def __init__(self, driver: Any, address: str) -> None:
        self.driver = driver
        driver.get(address + "/")
        self.until(lambda: driver.execute_script("return 'ready' in document.body.dataset"))

    def until(self, claim: Callable[[], Any]) -> Any:
        return WebDriverWait(self.driver, WAIT_S, poll_frequency=0.1).until(lambda _: claim())

    def all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector: str) -> WebElement:
        return self.all(selector)[0]

    def upload(self, file: Path) -> None:
        before = self.source()
        self.one("#file").send_keys(str(file))
        self.until(lambda: self.source() not in ("", None, before) and self.one(".frame img").is_displayed())

    def source(self) -> str | None:
        return self.one(".frame img").get_attribute("src")

    def type(self, text: str) -> None:
        area = self.one("#question")
        area.clear()
        area.send_keys(text)

    def ask(self, text: str) -> str:
        """Type a question, send it with Enter and return the complete answer as shown."""
        number = len(self.all(".turn"))
        self.type(text)
        self.one("#question").send_keys(Keys.ENTER)
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
        return self.one("#question").get_property("value")

    def button(self, words: str) -> WebElement:
        shown = [b for b in self.all("button") if b.is_displayed()]
        return next(b for b in shown if words in (b.text.strip(), b.get_attribute("aria-label")))

    def saved(self, number: int, selector: str) -> bytes:
        """What a button lets the browser save as its download `number`."""
        self.one(selector).click()
        url = self.until(lambda: self.driver.execute_script("return window.saved[arguments[0]]", number))
        return base64.b64decode(url.partition(",")[2])

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
