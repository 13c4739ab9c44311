"""Exit codes have one owner, `ExitCode`: the errors, the docs' table and the shell scripts agree with it."""

from __future__ import annotations

import json
import re

import pytest

from minigptv2 import errors
from minigptv2.errors import ExitCode, MiniGPTv2Error, exit_code_of
from tests.conftest import REPOSITORY

ERRORS = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, MiniGPTv2Error)]
ROW = re.compile(r"^\|?\s*([\d, ]+?)\s*\|\s*(.+?)\s*\|\s*(.*?)\s*\|?$", re.M)


def documented() -> dict[int, str]:
    """Exit code to the column "restart?" of the table in docs/reliability.md."""
    text = (REPOSITORY / "docs" / "reliability.md").read_text()
    section = text.split("## Exit codes")[1].split("\n## ")[0]
    return {int(code): row[3] for row in ROW.finditer(section) for code in row[1].split(",")}


def test_every_code_belongs_to_an_error() -> None:
    assert {error.exit_code for error in ERRORS} == {1, *ExitCode}


def test_the_final_codes_are_those_that_a_restart_repeats() -> None:
    assert [int(code) for code in ExitCode if code.final] == [2, 3, 4, 5, 8]


def test_the_documented_table_lists_every_code() -> None:
    assert set(documented()) == {0, errors.OTHER_ERROR, errors.INTERRUPTED, *map(int, ExitCode)}


def test_the_documented_table_recommends_a_restart_unless_the_code_is_final() -> None:
    for code, advice in documented().items():
        if code in set(ExitCode):
            assert advice.startswith("yes") == (not ExitCode(code).final and code != ExitCode.NODES), (code, advice)


def test_shell_scripts_use_the_codes_of_the_enum() -> None:
    ssh = (REPOSITORY / "launch" / "slurm" / "srun_as_ssh" / "ssh").read_text()
    assert re.findall(r"^requeue_code=(\d+)", ssh, re.M) == [str(int(ExitCode.REQUEUE))]
    common = (REPOSITORY / "launch" / "slurm" / "common.sh").read_text()
    assert re.findall(r"^config_code=(\d+)", common, re.M) == [str(int(ExitCode.CONFIG))]
    assert set(re.findall(r"\bexit (\d+)", common + ssh)) <= {"0", "1"}


@pytest.mark.parametrize(
    ("error", "code"),
    [(errors.StepError("x"), 5), (ValueError("x"), 1), (KeyboardInterrupt(), 130), (errors.RequeueExit("x"), 85)],
)
def test_an_exception_maps_to_its_exit_code(error: BaseException, code: int) -> None:
    assert exit_code_of(error) == code
    assert json.dumps({"exit_code": exit_code_of(error)}) == f'{{"exit_code": {code}}}'
