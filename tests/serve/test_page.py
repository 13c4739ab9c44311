"""Tests the page over HTTP: its files and settings, which examples it offers, and that no request names a file."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from minigptv2.errors import DataError
from minigptv2.predict.predictor import Predictor
from minigptv2.serve.config import Access, Limits
from minigptv2.serve.page import FILES, ExampleQuestion, load_examples
from minigptv2.tasks import TASKS
from tests.serve.running import NAME, running
from tests.serve.test_protocol import GOOD, SMALL, ask, url_of
from tests.serve.tiny import picture

SECRET = "open sesame"
AUDITED: list[list[str]] = []
"""One list for each audit in progress. A hook cannot be removed, so it is installed once."""
EVENTS = ("open", "os.system", "subprocess.Popen", "socket.connect", "os.listdir", "os.scandir")


def _record(event: str, arguments: tuple[Any, ...]) -> None:
    if AUDITED and event in EVENTS and not isinstance(arguments[0], int):
        AUDITED[-1].append(f"{event} {arguments!r}"[:300])


sys.addaudithook(_record)


@contextmanager
def audit() -> Iterator[list[str]]:
    """What the process opens, starts and connects to meanwhile, except the connections of the test's own client."""
    AUDITED.append([])
    try:
        yield AUDITED[-1]
    finally:
        found = AUDITED.pop()
        found[:] = [event for event in found if not event.startswith("socket.connect") or "127.0.0.1" not in event]


@pytest.fixture(scope="module")
def server(predictor: Predictor) -> Iterator[str]:
    with running(predictor, page=True, limits=Limits(max_new_tokens=8)) as address:
        yield address


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """An image file of the server that no visitor may get."""
    picture(3).save(tmp_path / "secret.png")
    return tmp_path / "secret.png"


def test_the_page_loads_its_own_files_only(server: str) -> None:
    page = httpx.get(server + "/")
    assert page.headers["content-type"].startswith("text/html") and 'lang="en"' in page.text
    names = set(re.findall(r'(?:src|href)="([^"]+)"', page.text))
    modules = {f"page/{file.name}" for file in FILES.glob("*.js")}
    assert names == {"page/icon.svg", "page/style.css", "page/main.js"}
    for name in names | modules:
        reply = httpx.get(f"{server}/{name}")
        assert reply.status_code == 200 and "://" not in reply.text.replace("http://www.w3.org/2000/svg", ""), name
    assert "style=" not in page.text and "onclick" not in page.text


def test_scripts_come_from_files_of_the_page_alone(server: str) -> None:
    for path in ("/", "/page/main.js", "/page/settings.json", "/nowhere"):
        policy = httpx.get(server + path).headers["content-security-policy"]
        assert "default-src 'none'" in policy and "script-src 'self';" in policy and "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy and "require-trusted-types-for 'script'" in policy


def test_a_browser_asks_whether_a_file_changed(server: str) -> None:
    first = httpx.get(server + "/page/style.css")
    assert first.headers["cache-control"] == "no-cache"
    again = httpx.get(server + "/page/style.css", headers={"if-none-match": first.headers["etag"]})
    assert again.status_code == 304 and not again.content and again.headers["etag"] == first.headers["etag"]
    assert httpx.get(server + "/page/main.js").headers["etag"] != first.headers["etag"]


def test_the_settings_name_the_run_its_tasks_and_limits(server: str) -> None:
    settings = httpx.get(server + "/page/settings.json").json()
    assert settings["name"] == NAME and settings["max_tokens"] == 8 and settings["max_text"] == Limits().max_text
    assert [task["identifier"] for task in settings["tasks"]] == [t.identifier for t in TASKS.values() if t.identifier]
    assert all(task["label"] and "[" not in task["label"] for task in settings["tasks"])
    assert [task["identifier"] for task in settings["tasks"] if task["needs_region"]] == [settings["region_task"]]
    largest = settings["image_bytes"]
    assert largest * 4 / 3 + settings["max_text"] * 6 < Limits().max_body_mib * 2**20
    example = httpx.get(f"{server}/{settings['examples'][0]['image']}")
    assert example.status_code == 200 and example.headers["content-type"] in ("image/png", "image/jpeg")


def test_an_image_is_shown_as_the_model_sees_it(server: str) -> None:
    """Orientation 6 is a quarter turn: the browser gets the turned image, also if it would not turn it itself."""
    exif = Image.Exif()
    exif[0x0112] = 6
    for form in ("JPEG", "PNG", "WEBP"):
        reply = httpx.post(server + "/page/image", json={"image": url_of(picture(1, (40, 20)), form, exif=exif)})
        assert (reply.json()["width"], reply.json()["height"]) == (20, 40), form
        assert reply.json()["shown"].startswith("data:image/jpeg;base64,")


HEIC = b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic" + b"\x00" * 64


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (HEIC, "HEIC"),
        (b"hello", "image"),
        (b"", "image"),
        (b"<!doctype html><html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 3\n", "Git LFS pointer"),
        (b"\x89PNG\r\n\x1a\n" + b"0" * 100, "damaged"),
    ],
)
def test_a_file_that_is_no_image_is_refused_by_name(server: str, data: bytes, reason: str) -> None:
    import base64

    url = "data:image/png;base64," + base64.b64encode(data).decode()
    reply = httpx.post(server + "/page/image", json={"image": url})
    assert reply.status_code == 400 and reason in reply.json()["error"]["message"]


def hostile_values(secret: Path) -> list[Any]:
    """Values that name a file or an address, for every place of a body that takes an image."""
    file_data = {"path": str(secret), "meta": {"_type": "gradio.FileData"}}
    return [
        str(secret),
        f"file://{secret}",
        f"FILE://localhost{secret}",
        "/proc/self/environ",
        "/dev/zero",
        "../../../../etc/passwd",
        "http://127.0.0.1:1/x.png",
        "https://example.com/x.png",
        "ftp://127.0.0.1:1/x",
        "blob:http://127.0.0.1/1",
        f"data:image/png,{secret}",
        f"data:image/png;base64,@{secret}",
        f"data:image/png;charset=utf-8;base64,{secret}",
        f"data:;base64,file://{secret}",
        {"path": str(secret)},
        {"url": f"file://{secret}"},
        file_data,
        {"image": file_data},
        {"url": {"url": file_data}},
        {"data": None, "name": str(secret), "is_file": True},
        {"__type__": "filepath", "value": str(secret)},
        [file_data],
        [[str(secret)]],
        3,
        True,
        None,
    ]


def bodies(value: Any) -> Iterator[tuple[str, Any]]:
    """Routes and bodies with `value` in the place of an image, and in fields that the server does not have."""
    image = {"type": "image_url", "image_url": {"url": value}}
    yield "/page/image", {"image": value}
    yield "/page/image", value
    yield "/page/image", {"image": SMALL, "path": value}
    for part in (image, {"type": "image_url", "image_url": value}, {"type": "file", "file": value}):
        yield (
            "/v1/chat/completions",
            {**GOOD, "messages": [{"role": "user", "content": [part, ask("x")["content"][0]]}]},
        )
    yield "/v1/chat/completions", {**GOOD, "files": [value]}
    yield "/v1/chat/completions", {**GOOD, "event_data": {"picture": value}, "fn_index": 0}


def test_no_body_names_a_file(server: str, secret: Path) -> None:
    httpx.post(server + "/page/image", json={"image": "x"})  # whatever Python loads on the first request
    httpx.post(server + "/v1/chat/completions", json={**GOOD, "messages": 1})
    with httpx.Client(base_url=server) as client, audit() as opened:
        for value in hostile_values(secret):
            for path, body in bodies(value):
                reply = client.post(path, json=body)
                assert 400 <= reply.status_code < 500, (path, body)
                assert set(reply.json()["error"]) == {"message", "type", "param", "code"}
    assert not opened


def test_answering_opens_no_file(server: str) -> None:
    with httpx.Client(base_url=server) as client:
        for _ in range(2):  # the first round loads modules
            with audit() as opened:
                assert client.post("/page/image", json={"image": SMALL}).status_code == 200
                assert client.post("/v1/chat/completions", json=GOOD).status_code == 200
                for path in ("/", "/page/main.js", "/page/settings.json", "/page/examples/0"):
                    assert client.get(path).status_code == 200
    assert not opened


def test_the_audit_sees_an_opened_file(secret: Path) -> None:
    with audit() as opened:
        secret.read_bytes()
    assert len(opened) == 1 and "secret.png" in opened[0]


def test_the_page_is_behind_the_password(predictor: Predictor) -> None:
    with running(predictor, page=True, access=Access(password=SECRET)) as address:
        for path in ("/", "/page/settings.json", "/page/main.js", "/page/examples/0"):
            assert httpx.get(address + path).status_code == 401
            assert httpx.get(address + path, auth=("me", SECRET)).status_code == 200
        assert httpx.post(address + "/page/image", json={"image": SMALL}).status_code == 401


def test_without_the_page_its_routes_are_missing(predictor: Predictor) -> None:
    with running(predictor) as address:
        for path in ("/", "/page/settings.json", "/page/main.js"):
            assert httpx.get(address + path).status_code == 404
        assert httpx.post(address + "/page/image", json={"image": SMALL}).status_code == 404


def test_a_conversation_that_is_too_long_has_a_code(server: str) -> None:
    for text in ("7" * 1100, "x" * 40_000):
        reply = httpx.post(server + "/v1/chat/completions", json={**GOOD, "messages": [ask(text)]})
        assert reply.json()["error"]["code"] == "context_length_exceeded"


def test_examples_are_read_as_predict_reads_them(tmp_path: Path) -> None:
    picture(1).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    lines = [
        {"image": ["a.png", "b.png"], "turns": [{"question": " what\u2028is it? "}]},
        {"image": [], "turns": [{"question": "hi"}]},
        {"image": "a.png", "turns": [{"question": "hi"}]},
    ]
    file = tmp_path / "examples.jsonl"
    file.write_text("\n" + "\n \n".join(json.dumps(line, ensure_ascii=False) for line in lines) + "\n\n")
    assert load_examples(file) == [
        ExampleQuestion("what\u2028is it?", data),
        ExampleQuestion("hi", None),
        ExampleQuestion("hi", data),
    ]
    file.write_text('\n{"image": 3, "turns": [{"question": "hi"}]}')
    with pytest.raises(DataError, match="examples.jsonl:2: expected"):
        load_examples(file)


def test_an_example_that_is_no_image_stops_the_start(predictor: Predictor, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"hello")
    file = tmp_path / "examples.jsonl"
    file.write_text(json.dumps({"image": "a.png", "turns": [{"question": "hi"}]}))
    with pytest.raises(DataError, match="image"), running(predictor, page=True, examples=file):
        raise AssertionError("the server started")
