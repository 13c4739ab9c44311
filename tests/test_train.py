"""A stage from the command line: end to end, killed and resumed, in one process and in two, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from minigptv2.cli import main as cli
from minigptv2.errors import RequeueExit, StepError
from minigptv2.model.export import load_export, load_info
from minigptv2.shards.dropped import DropReport, read_report
from minigptv2.shards.reader import CorpusReader
from minigptv2.tracking.log import read_metrics
from tests import preloaded
from tests.conftest import REPOSITORY, World
from tests.preloaded import PreloadedProcess
from tests.ranks import start_ranks

RECIPE = """
corpora:
  toy_refer: {ratio: 2, task: refer}
  toy_conversation: {ratio: 1, task: mixed}
  toy_language: {ratio: 1, task: language}
  photographs: {ratio: 1, task: mixed}
"""


@pytest.fixture(scope="module")
def config(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("configs")
    evaluate = {"shards": str(world.val), "corpora": ["toy_refer"], "samples": 2, "every": 3, "max_new_tokens": 4}
    return world.write_stage(
        folder, RECIPE, changes={"evaluate": evaluate}, steps=6, warmup_steps=2, checkpoint_every=2, log_every=1
    )


def start(config: Path, ranks: int, *words: str) -> list[PreloadedProcess]:
    """The processes a launcher would start; their output goes to files beside the config."""
    return start_ranks(config, ranks, *words, logs=config.parent)


def wait_for(log: Path, words: str, process: PreloadedProcess) -> None:
    """Until the log says `words`."""
    deadline = time.monotonic() + 120
    while not (log.is_file() and words in log.read_text()):
        assert process.poll() is None and time.monotonic() < deadline, (log, words)
        time.sleep(0.01)


def equal_weights(one: Path, other: Path) -> bool:
    """Whether two runs' exports are equal bit for bit."""
    a, b = (load_file(folder / "export" / "weights.safetensors") for folder in (one, other))
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def scalar_steps(folder: Path) -> list[int]:
    """The steps at which TensorBoard shows a loss, after all interruptions."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(folder / "tensorboard"))
    board.Reload()
    return [event.step for event in board.Scalars("loss")]


def run(config: Path, ranks: int, *words: str, expect: int = 0) -> str:
    """Run to the end; returns rank 0's output."""
    processes = start(config, ranks, *words)
    codes = [process.wait(240) for process in processes]
    output = (config.parent / "rank0.log").read_text()
    assert codes == [expect] * ranks, output[-3000:]
    return output


@pytest.fixture(scope="module")
def unbroken(config: Path) -> Path:
    """A whole run on two ranks under ZeRO-3."""
    folder = config.parent / "unbroken"
    output = run(config, 2, f"run_dir={folder}")
    assert "tiny: starts from the base weights" in output
    assert "target mixture: toy_refer 40.00 %" in output and "actual mixture: " in output
    assert "ZeRO stage 3 on 2 process(es)" in output
    return folder


def test_a_run_leaves_log_checkpoints_pictures_and_an_export(unbroken: Path) -> None:
    rows = read_metrics(unbroken)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert {"refer", "conversation", "language"} <= set(rows[-1]["task_loss"]) | set(rows[0]["task_loss"])
    assert sum(rows[-1]["mixture"].values()) == pytest.approx(1.0)
    assert sorted(path.name for path in (unbroken / "checkpoints").iterdir()) == ["step-00000004", "step-00000006"]
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(unbroken / "tensorboard"))
    board.Reload()
    assert {"loss", "learning_rate", "task_loss/refer", "mixture/toy_refer"} <= set(board.Tags()["scalars"])
    assert board.Tags()["images"] == ["heldout/toy_refer"]
    model, _, info = load_export(unbroken / "export")
    assert info.lineage[-1].steps == 6 and not model.training
    assert "run_dir" in (unbroken / "config.yaml").read_text()


@pytest.mark.parametrize("moment", ["step 1", "step 3", "step 5"])
def test_kill_and_the_same_command_end_in_the_same_weights(config: Path, unbroken: Path, moment: str) -> None:
    folder = config.parent / f"killed-{moment[-1]}"
    processes = start(config, 2, f"run_dir={folder}")
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        log = folder / "log.txt"
        if log.is_file() and f"{moment} " in log.read_text():
            break
        assert processes[0].poll() is None, (config.parent / "rank0.log").read_text()[-2000:]
        time.sleep(0.01)
    for process in processes:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (folder / "export").exists()
    output = run(config, 2, f"run_dir={folder}")
    assert ("resumed from" in output) == (moment != "step 1")
    whole, again = (load_file(run_ / "export" / "weights.safetensors") for run_ in (unbroken, folder))
    assert whole.keys() == again.keys() and all(torch.equal(whole[name], again[name]) for name in whole)
    assert [row["step"] for row in read_metrics(folder)] == [1, 2, 3, 4, 5, 6]
    assert [row["loss"] for row in read_metrics(folder)] == [row["loss"] for row in read_metrics(unbroken)]


def test_one_process_without_a_launcher_trains_the_same(config: Path, unbroken: Path) -> None:
    """`launch/train.py` and `minigptv2 train` write equal metrics, which are those of two ranks but for rounding."""
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    script, command = config.parent / "alone", config.parent / "alone-by-command"
    words = [sys.executable, "launch/train.py", "--config", str(config), f"run_dir={script}"]
    subprocess.run(words, cwd=REPOSITORY, env=environment, check=True, capture_output=True)
    argv = ("minigptv2", "train", f"run_dir={command}", "--config", str(config))
    log = config.parent / "command.log"
    assert preloaded.start("minigptv2.cli:main", log=log, environment=environment, argv=argv).wait(240) == 0
    by_script, by_command = ([_without_times(row) for row in read_metrics(folder)] for folder in (script, command))
    assert by_command == by_script and {"step", "loss", "learning_rate", "gradient_norm"} <= by_script[0].keys()
    of_two_ranks = [row["loss"] for row in read_metrics(unbroken)]
    assert [row["loss"] for row in by_script] == pytest.approx(of_two_ranks, abs=1e-5)


def _without_times(row: dict[str, object]) -> dict[str, object]:
    times = ("time", "throughput", "data_seconds", "memory_mib", "limit")
    return {name: value for name, value in row.items() if name not in times}


def test_a_stage_with_lora_continues_one_without_and_resumes_elsewhere(config: Path, unbroken: Path) -> None:
    """Stage 2 starts from stage 1's export, trains projector and LoRA only, moves from two ranks to one."""
    folder = config.parent / "second"
    words = [
        "stage=second",
        f"run_dir={folder}",
        f"init_from={unbroken}/export",
        "model.lora={r: 4, dropout: 0.0}",
        "model.trainable=[projector,lora]",
        "evaluate.every=0",
    ]
    run(config, 2, *words, "train.steps=4", "data.max_tokens=60")
    shutil.rmtree(folder / "checkpoints" / "step-00000004")
    output = run(config, 1, *words, "train.steps=4", "data.max_tokens=60", "--resume")
    assert "samples to 60 text tokens (data.max_tokens): " in output and read_metrics(folder)[-1]["truncated"] > 0
    assert f"continues tiny ({unbroken}/export, 6 steps" in output
    assert "resumed from" in output and "at step 2 of 4" in output
    info = load_info(folder / "export")
    assert [stage.stage for stage in info.lineage] == ["tiny", "second"]
    assert info.lineage[1].details["parent"] == load_info(unbroken / "export").weights_sha256
    before, after = (load_file(run_ / "export" / "weights.safetensors") for run_ in (unbroken, folder))
    moved = {name for name, value in after.items() if name not in before or not torch.equal(value, before[name])}
    assert moved and all("lora_" in name or name.startswith("projector") for name in moved)
    load_export(folder / "export")


def test_what_cannot_go_on_is_refused_with_both_values(config: Path, unbroken: Path, tmp_path: Path) -> None:
    other = tmp_path / "tokenizer.json"
    text = (Path(load_info(unbroken / "export").folder) / "tokenizer.json").read_text()
    other.write_text(text + " ")
    output = run(config, 1, f"run_dir={unbroken}", f"model.tokenizer={other}", expect=4)
    assert "CheckpointError: cannot resume" in output and "tokenizer_sha256 was" in output and "is now" in output
    assert "Traceback" not in output
    output = run(config, 1, f"run_dir={tmp_path}/new", "--resume", expect=4)
    assert "there is no checkpoint" in output


def test_a_damaged_newest_checkpoint_is_named_and_the_older_one_used(config: Path, unbroken: Path) -> None:
    folder = config.parent / "damaged"
    shutil.copytree(unbroken, folder)
    file = folder / "checkpoints" / "step-00000006" / "exp_avg.safetensors"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    output = run(config, 2, f"run_dir={folder}")
    assert "skipping damaged checkpoint" in output and "exp_avg.safetensors" in output and "at step 4 of 6" in output
    whole, again = (load_file(run_ / "export" / "weights.safetensors") for run_ in (unbroken, folder))
    assert all(torch.equal(whole[name], again[name]) for name in whole)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["train.stepz=3"], 2, "unknown key 'train.stepz'; did you mean 'train.steps'?"),
        (["train.global_batch_size=7"], 2, "is not a multiple of micro_batch_size=2 x world_size=1 (=2). Set"),
        (["model.trainable=[projektor]"], 2, "unknown part 'projektor'; did you mean 'projector'"),
        (["data.recipe=nowhere.yaml"], 2, "data.recipe=nowhere.yaml: no such file"),
        (["train.deepspeed=nowhere.json"], 2, "train.deepspeed=nowhere.json: no such file"),
        (["data.max_tokens=3000"], 2, "the longest sample must fit a pack"),
        (["data.max_tokens=2000"], 2, "tokens of an image make 20"),
        (["data.max_tokens=15"], 2, "data.max_tokens=15 must be at least 16"),
        (["nonsense"], 2, "'nonsense' is not of the form key=value"),
    ],
)
def test_impossible_configs_end_before_anything_is_loaded(
    config: Path, words: list[str], code: int, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    from minigptv2.cli.train import main

    assert main(["--config", str(config), *words]) == code
    printed = capfd.readouterr()
    assert message in printed.out + printed.err
    assert cli(["config", str(config), *words]) == code


def test_a_missing_shard_ends_the_run_with_its_name(config: Path, world: World, tmp_path: Path) -> None:
    shutil.copytree(world.train, tmp_path / "shards")
    (tmp_path / "shards" / "toy_refer" / "toy_refer-000002.tar").unlink()
    output = run(config, 1, f"run_dir={tmp_path}/run", f"data.shards={tmp_path}/shards", expect=3)
    assert "DataError" in output and "first toy_refer-000002.tar" in output and "Traceback" not in output


def test_every_lost_sample_of_a_run_is_in_its_report(config: Path, world: World, tmp_path: Path) -> None:
    shutil.copytree(world.train, tmp_path / "shards")
    for file in (tmp_path / "shards" / "toy_refer").glob("*.tar"):
        file.write_bytes(file.read_bytes().replace(b"\xff\xd8\xff\xe0", b"\xff\xd8\xff\xe1", 3))
    (tmp_path / "recipe.yaml").write_text(RECIPE + "max_bad_rate: 0.5\n")
    words = [f"data.shards={tmp_path}/shards", f"data.recipe={tmp_path}/recipe.yaml", f"run_dir={tmp_path}/run"]
    output = run(config, 2, *words, "train.steps=4")
    rows = read_report(tmp_path / "run" / "dropped.jsonl")
    assert rows and {row["rank"] for row in rows} == {0, 1} and {row["corpus"] for row in rows} == {"toy_refer"}
    assert all(str(row["key"]).startswith("train-") and "checksum" in str(row["reason"]) for row in rows)
    assert sum(row["rank"] == 0 for row in rows) == output.count("dropped toy_refer-")
    report = DropReport(tmp_path / "run", step=2)
    assert report.count == sum(int(str(row["step"])) <= 2 for row in rows) < len(rows)


def test_ask_answers_and_draws(
    unbroken: Path, world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = tmp_path / "scene.jpg"
    image.write_bytes(CorpusReader(world.val / "toy_refer").image(0))
    words = ["ask", "--model", str(unbroken / "export"), str(image), "[refer] the red circle"]
    assert cli([*words, "--draw", str(tmp_path / "out.png"), "--max-new-tokens", "4"]) == 0
    answer = capsys.readouterr().out
    assert "drawn" in answer and (tmp_path / "out.png").is_file()
    assert cli([*words, "--max-new-tokens", "4", "--json"]) == 0
    assert answer.startswith(json.loads(capsys.readouterr().out)["answer"])
    assert cli(["ask", "--model", str(unbroken), str(image), "hello"]) == 4
    assert "no export in" in capsys.readouterr().err
    (tmp_path / "broken.jpg").write_bytes(image.read_bytes()[:500])
    assert cli(["ask", "--model", str(unbroken / "export"), str(tmp_path / "broken.jpg"), "hello"]) == 3
    assert "broken.jpg: truncated" in capsys.readouterr().err


def test_evaluate_writes_figures_and_predictions(
    unbroken: Path, world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", "--model", str(unbroken / "export"), "--shards", str(world.val), "--limit", "3"]
    corpora = [w for c in ("refer", "vqa") for w in ("--corpus", f"toy_{c}")]
    assert cli([*words, *corpora, "--output", str(tmp_path), "--json"]) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert json.loads(capsys.readouterr().out) == results
    assert [one["benchmark"] for one in results] == ["toy_refer/refer", "toy_vqa/vqa"]
    for one in results:
        assert len((tmp_path / one["benchmark"] / "predictions.jsonl").read_text().splitlines()) == one["questions"]


def test_a_signal_to_one_rank_saves_on_all_and_leaves_with_the_requeue_code(config: Path, unbroken: Path) -> None:
    folder, name = config.parent / "signalled", "SIGUSR1"
    processes = start(config, 2, f"run_dir={folder}", "train.checkpoint_every=100")
    wait_for(folder / "log.txt", "step 2 ", processes[0])
    processes[1].send_signal(getattr(signal, name))
    assert [process.wait(60) for process in processes] == [RequeueExit.exit_code] * 2
    said = (config.parent / "rank0.log").read_text()
    assert "RequeueExit: stopped at step" in said and f"({name})" in said and "Traceback" not in said
    assert "Traceback" not in (config.parent / "rank1.log").read_text()
    (saved,) = (folder / "checkpoints").iterdir()
    assert f"saved at step {int(saved.name[-8:])} of 6" in said
    run(config, 2, f"run_dir={folder}", "--resume")
    assert equal_weights(folder, unbroken)
    assert [row["loss"] for row in read_metrics(folder)] == [row["loss"] for row in read_metrics(unbroken)]
    assert scalar_steps(folder) == [1, 2, 3, 4, 5, 6]


def test_a_time_limit_saves_and_requeues(config: Path, unbroken: Path) -> None:
    folder = config.parent / "limited"
    run(config, 1, f"run_dir={folder}", "train.time_limit_minutes=1e-4", expect=RequeueExit.exit_code)
    assert "time limit" in (config.parent / "rank0.log").read_text()


CANARY = "canary-5f3a9c71d2"


def test_no_secret_reaches_anything_a_run_writes(config: Path) -> None:
    """The config holds the value of a secret variable. Covers a complete run, two crashes and their output."""
    folder = config.parent / "secretive"
    os.environ["SERVICE_TOKEN"] = CANARY
    try:
        words = [f"run_dir={folder}", f"stage=s-{CANARY}", "train.steps=2", "evaluate.every=0"]
        run(config, 1, *words)
        said = (config.parent / "rank0.log").read_text()
        run(config, 1, *words, "train.seed=1", expect=2)
        said += (config.parent / "rank0.log").read_text()
        run(config, 1, *words, f"data.shards={folder}/${{oc.env:SERVICE_TOKEN}}", expect=3)
        said += (config.parent / "rank0.log").read_text()
    finally:
        del os.environ["SERVICE_TOKEN"]
    written = [path for path in folder.rglob("*") if path.is_file()]
    assert {"config.yaml", "log.txt", "metrics.jsonl", "attempts.jsonl", "state.json"} <= {p.name for p in written}
    assert any("tfevents" in path.name for path in written)
    for path in written:
        assert CANARY.encode() not in path.read_bytes() and CANARY not in path.name, path
    assert CANARY not in said and "s-[secret]" in said
    assert "s-[secret]" in (folder / "config.yaml").read_text()


def test_a_changed_config_is_refused_or_logged(config: Path, unbroken: Path) -> None:
    """Through the command: a changed learning rate is logged, a changed recipe is refused."""
    folder = config.parent / "changed"
    shutil.copytree(unbroken, folder)
    shutil.rmtree(folder / "checkpoints" / "step-00000006")
    recipe = config.parent / "other.yaml"
    recipe.write_text(RECIPE.replace("{ratio: 2,", "{ratio: 3,"))
    output = run(config, 1, f"run_dir={folder}", f"data.recipe={recipe}", expect=4)
    assert "recipe.corpora.toy_refer.ratio was 2" in output and "is now 3" in output
    output = run(config, 1, f"run_dir={folder}", "model.lora={r: 2, alpha: 8}", expect=4)
    assert "model.lora.alpha was 16 and is now 8" in output
    output = run(config, 1, f"run_dir={folder}", "train.learning_rate=5e-4")
    assert "changed on resume: train.learning_rate was 0.001, is now 0.0005" in output
    assert "changed on resume" in (folder / "log.txt").read_text()
    info = load_info(folder / "export")
    assert info.lineage[-1].details["config"]["train.learning_rate"] == 0.0005


def test_lineage_prints_the_chain(config: Path, unbroken: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli(["lineage", str(unbroken)]) == 0
    said = capsys.readouterr().out
    assert "1. tiny: 6 steps, seed 0" in said and "data_plan" in said and "lr 0.001, batch 8" in said
    assert cli(["lineage", str(unbroken), "--json"]) == 0
    (stage,) = json.loads(capsys.readouterr().out)
    assert (stage["stage"], stage["steps"], stage["config"]["train.global_batch_size"]) == ("tiny", 6, 8)


def test_a_skipped_step_is_named_saved_and_replayed(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The real model overflows until the run stops. Replaying the saved step reproduces the overflow."""
    folder = config.parent / "overflowing"
    words = [
        f"run_dir={folder}",
        "train.learning_rate=1e20",
        "train.warmup_learning_rate=1e20",
        "evaluate.every=0",
        "train.gradient_clipping=0",
        "train.guard.max_skipped_in_a_row=2",
        "train.guard.keep_bundles=1",
    ]
    output = run(config, 2, *words, expect=StepError.exit_code)
    assert "2 steps in a row were skipped" in output
    assert "OVERFLOW" not in output, "DeepSpeed's own message about a skipped step can be wrong"
    log = (folder / "log.txt").read_text()
    assert "skipped step 1: the loss is nan. 8 samples: " in log and "toy_refer-00000" in log
    assert [path.name for path in (folder / "bundles").iterdir()] == ["step-00000001"]
    assert cli(["replay", str(folder / "bundles" / "step-00000001")]) == 5
    said = capsys.readouterr().out
    assert "rank 1 micro-batch 0: loss nan" in said and "first not finite in" in said and "toy_refer-00000" in said
