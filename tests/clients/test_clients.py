"""Tests that clients and harnesses that others wrote get the answers of the model, with their default settings."""

from __future__ import annotations

import base64
import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from minigptv2.boxes import Box, iou
from minigptv2.cli import main
from minigptv2.predict.predictor import Predictor
from tests.browser.world import PLACES, draw_picture, teacher
from tests.clients.conftest import HERE, Results, last_json
from tests.clients.world import COLORS, EXPECTED, QUESTION, ColorWorld, color_picture
from tests.serve.running import NAME, running
from tests.serve.test_protocol import ask, url_of

pytestmark = pytest.mark.clients

SYSTEM = {"role": "system", "content": "You are a helpful assistant."}


@pytest.fixture(scope="module")
def pointing(predictor: Predictor) -> Iterator[str]:
    """A server whose answers are those of a teacher who sees the image, with boxes."""
    with running(predictor, script=teacher) as address:
        yield address


def conversation() -> str:
    """A conversation with a system message, an image, and a question about a place."""
    return json.dumps([SYSTEM, ask("[refer] where is the green one?", url_of(draw_picture()))])


def is_right(answer: dict[str, Any], *, boxes: bool) -> bool:
    if answer["text"] != answer["streamed"] or not answer["text"].startswith("{<"):
        return False
    both = [answer["boxes"], answer["streamed_boxes"]] if boxes else []
    return all(iou(Box(*found[0]["box"]), PLACES["green"]) > 0.9 for found in both)


@pytest.mark.parametrize(("program", "package", "boxes"), [
    ("ask_openai.py", "openai", True),
    ("ask_litellm.py", "litellm", False),
    ("ask_langchain.py", "langchain-openai", False),
])  # fmt: skip
def test_a_client_gets_the_answer(
    program: str,
    package: str,
    boxes: bool,
    pointing: str,
    run_python: Callable[..., Any],
    version_of: Callable[[str], str],
    results: Results,
) -> None:
    answer = run_python(program, pointing, NAME, conversation())
    assert is_right(answer, boxes=boxes), answer
    assert answer.get("batch", []) in ([], [answer["text"]] * 2)
    kept = "text and boxes" if boxes else "text, which contains the boxes; the field `boxes` is dropped"
    results.append((f"{package} (Python)", version_of(package), f"system message, image, whole and streamed: {kept}"))


def test_the_client_of_npm_gets_the_answer(pointing: str, tools: Path, results: Results) -> None:
    package = json.loads((tools / "node_modules/openai/package.json").read_text())
    program = tools / "ask_openai.mjs"
    program.write_bytes((HERE / "programs/ask_openai.mjs").read_bytes())
    done = subprocess.run(
        ["node", str(program), pointing, NAME, conversation()], text=True, capture_output=True, timeout=120, check=False
    )
    assert is_right(last_json(done), boxes=True)
    shown = "system message, image, whole and streamed: text and boxes"
    results.append(("openai (npm)", package["version"], shown))


def test_inspect_ai_measures_the_accuracy(
    server: str,
    color_world: ColorWorld,
    run_python: Callable[..., Any],
    version_of: Callable[[str], str],
    results: Results,
) -> None:
    measured = run_python("ask_inspect.py", server, NAME, str(color_world.questions))
    assert measured["texts"] == list(COLORS) and measured["accuracy"] == EXPECTED
    results.append(("inspect-ai", version_of("inspect_ai"), f"default settings: accuracy {EXPECTED}"))


def evaluated(color_world: ColorWorld, folder: Path) -> float:
    """The accuracy of `minigptv2 evaluate` on the same questions."""
    words = ["--benchmark", "gqa", "--protocol", "official", "--data", str(color_world.data), "--output", str(folder)]
    assert main(["evaluate", "--model", str(color_world.export), "--prompt-style", "trained", *words]) == 0
    metrics: dict[str, float] = json.loads((folder / "gqa" / "metrics.json").read_text())["metrics"]
    return metrics["accuracy"]


@pytest.mark.parametrize("way", ["plugin", "server"])
def test_lmms_eval_measures_what_evaluate_measures(
    way: str,
    server: str,
    color_world: ColorWorld,
    tools: Path,
    tmp_path: Path,
    version_of: Callable[[str], str],
    results: Results,
) -> None:
    (tmp_path / "colors_utils.py").write_bytes((HERE / "lmms/colors_utils.py").read_bytes())
    task = (HERE / "lmms/colors.yaml").read_text().replace("QUESTIONS", str(color_world.questions))
    (tmp_path / "colors.yaml").write_text(task)
    model = {
        "plugin": ["minigptv2", "--model_args", f"pretrained={color_world.export}", "--batch_size", "4"],
        "server": ["openai", "--model_args", f"model_version={NAME},base_url={server}/v1,api_key=x"],
    }[way]
    words = ["--tasks", "minigptv2_colors", "--include_path", str(tmp_path), "--output_path", str(tmp_path / "out")]
    command = [str(tools / "bin/lmms-eval"), "eval", "--model", *model, *words]
    done = subprocess.run(command, text=True, capture_output=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    (file,) = (tmp_path / "out").rglob("*_results.json")
    scored = json.loads(file.read_text())["results"]["minigptv2_colors"]
    accuracy = next(value for key, value in scored.items() if key.startswith("accuracy,"))
    assert accuracy == EXPECTED == evaluated(color_world, tmp_path / "evaluate") / 100
    shown = f"default settings: {EXPECTED}, as `minigptv2 evaluate`"
    results.append((f"lmms-eval ({way})", version_of("lmms_eval"), shown))


def test_schemathesis_finds_no_fault(
    server: str, tools: Path, tmp_path: Path, version_of: Callable[[str], str], results: Results
) -> None:
    """Bodies that the schema allows may be refused, because it cannot express the order of messages."""
    words = ["--max-examples", "100", "--seed", "1", "--exclude-checks", "positive_data_acceptance"]
    command = [str(tools / "bin/schemathesis"), "run", f"{server}/openapi.json", *words]
    done = subprocess.run(command, text=True, capture_output=True, timeout=600, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-6000:]
    results.append(
        (
            "schemathesis",
            version_of("schemathesis"),
            "`/openapi.json`, all checks but the acceptance of every body, 100 examples",
        )
    )


def test_the_model_knows_the_colors(server: str) -> None:
    import openai

    client = openai.OpenAI(base_url=server + "/v1", api_key="x")
    for color in COLORS:
        url = "data:image/png;base64," + base64.b64encode(color_picture(color)).decode()
        messages: Any = [
            ask(f"[vqa] Based on the image, respond to this question with a short answer: {QUESTION}", url)
        ]
        assert client.chat.completions.create(model=NAME, messages=messages).choices[0].message.content == color
