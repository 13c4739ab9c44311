"""Secrets stay out of what a process prints and writes; the whole-run test is in test_train.py."""

from __future__ import annotations

import pytest

from minigptv2.cli import main
from minigptv2.config import load_config
from minigptv2.errors import ConfigError
from minigptv2.run_config import RunConfig
from minigptv2.secrets import HIDDEN, guarded_output, redact, redact_all

KNOWN = "s3cr3t-canary-value"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://user:pw@host/a.tar", f"https://{HIDDEN}@host/a.tar"),
        ("s3://key@bucket/x", f"s3://{HIDDEN}@bucket/x"),
        ("https://h/a?X-Amz-Signature=abc123&part=2", f"https://h/a?X-Amz-Signature={HIDDEN}&part=2"),
        ("https://h/a?part=2&sig=abc%2F", f"https://h/a?part=2&sig={HIDDEN}"),
        ("hf_abcdefghijklmnopqrstuv", HIDDEN),
        ("Authorization: Bearer abcdefghijk", f"Authorization: Bearer {HIDDEN}"),
        (f"failed at {KNOWN}!", f"failed at {HIDDEN}!"),
        ("me@example.org, step 12 at 1.5e-3, refcoco-000017.tar / 581857_2", None),
        ("{<10><20><30><40>} <p>a dog</p>", None),
        ("a short value: true", None),
    ],
)
def test_redact(text: str, expected: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_API_KEY", KNOWN)
    monkeypatch.setenv("USE_AUTH_TOKEN", "true")
    assert redact(text) == (text if expected is None else expected)
    assert redact_all({"a": [text]}) == {"a": [redact(text)]}


def test_what_is_printed_and_tracebacks_are_redacted(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KNOWN)
    with pytest.raises(SystemExit), guarded_output():
        print(f"the key is {KNOWN}")
        raise RuntimeError(f"cannot log in with {KNOWN}")
    printed = capsys.readouterr()
    assert KNOWN not in printed.out + printed.err
    assert f"RuntimeError: cannot log in with {HIDDEN}" in printed.err


def test_a_secret_on_the_command_line_is_refused_without_being_repeated() -> None:
    with pytest.raises(ConfigError, match="looks like a secret") as caught:
        load_config(RunConfig, None, ["data.shards=https://user:hunter2222@host/shards"])
    assert "hunter2222" not in str(caught.value)


@pytest.mark.parametrize(
    "name",
    ["DB_PASS", "GITLAB_PAT", "SIGNING_KEY", "HF_TOKEN", "DATABASE_URL", "GPG_PASSPHRASE", "SENTRY_DSN", "SSHPASS"]
    + ["PGPASSWORD", "MYSQL_PWD", "AZURE_STORAGE_CONNECTION_STRING", "SLACK_WEBHOOK", "apiKey", "SLURM_JWT", "AUTH"],
)
def test_names_of_secrets(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, KNOWN)
    assert redact(f"with {KNOWN}") == f"with {HIDDEN}"


@pytest.mark.parametrize("name", ["KEYBOARD", "TOKENIZERS", "PATH_X", "COMPASSES", "AUTHORS", "SPINDLE", "BASE_URL"])
def test_names_of_other_things(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, KNOWN)
    assert redact(f"with {KNOWN}") == f"with {KNOWN}"


@pytest.mark.parametrize("value", ["1", "true", "main", "disabled", "Required", "localhost", "/usr/bin", "        "])
def test_ordinary_values_are_no_secrets(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", value)
    text = "step 1 of main: true, optional is not Required, disabled on localhost in /usr/bin        end"
    assert redact(text) == text


def test_counts_are_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAX_TOKENS", "16777216")
    assert redact("16777216 tokens") == "16777216 tokens"


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("HTTPS_PROXY", "http://me:hunter2hunter@proxy:3128"),
        ("BASE_URL", "https://me:hunter2hunter@store/x"),
        ("SETTINGS", "host=db port=5432 password=hunter2hunter user=me"),
        ("DATABASE_URL", "postgres://me:hunter2%68unter@db/x"),
    ],
)
def test_passwords_within_other_variables(variable: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, value)
    assert "hunter2hunter" not in redact("FATAL: authentication failed for 'hunter2hunter'")


def test_each_line_of_a_key_is_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIGNING_KEY", f"-----BEGIN KEY-----\n{KNOWN}\nQUJDREVGRw==\n-----END KEY-----\n")
    assert redact(f"line 2 of the key: {KNOWN}") == f"line 2 of the key: {HIDDEN}"


def test_a_usage_error_repeats_no_secret(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_API_KEY", KNOWN)
    for words in (["train", "--config", "x", f"--{KNOWN}"], [KNOWN], ["plan", "--config", f"https://h/{KNOWN}"]):
        with pytest.raises(SystemExit):
            main(words)
        printed = capsys.readouterr()
        assert KNOWN not in printed.out + printed.err and HIDDEN in printed.err
