"""Launching on a real Slurm: the chain of stages, torchrun, deepspeed over pdsh, evaluation, the doctor."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from minigptv2.cli import main as cli
from minigptv2.evaluate.questions import questions_of
from minigptv2.evaluate.runner import asking_of
from minigptv2.evaluate.suite import heldout_jobs
from minigptv2.model.export import load_info
from minigptv2.shards.reader import CorpusReader
from tests.conftest import REPOSITORY, World
from tests.slurm.conftest import Cluster, Stage

pytestmark = pytest.mark.slurm
TINY = (
    "model.vision_encoder=tiny_vit",
    "model.language_model=tiny_llama",
    "train.steps=6",
    "train.global_batch_size=8",
    "train.micro_batch_size=4",
    "train.warmup_steps=2",
    "train.checkpoint_every=3",
    "train.log_every=1",
    "data.max_tokens=900",
    "data.max_pack_tokens=2000",
    "evaluate.every=0",
)


def test_three_stages_chained_by_one_command_end_in_a_model_that_answers(
    cluster: Cluster, world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(world.shards, tmp_path / "shards")
    shutil.copytree(world.tokenizer_folder, tmp_path / "tokenizer")
    environment = Path(sys.executable).parents[1]
    printed = cluster.run(
        "make",
        "--no-print-directory",
        "slurm-stages",
        f"VENV={environment}",
        f"STAMP={environment}/pyvenv.cfg",
        f"OVERRIDES={' '.join(TINY)}",
        TOY="1",
        NODES="2",
        QUICK="1",
        DEMO_DIR=str(tmp_path),
    )
    jobs = re.findall(r"job (\d+)", printed)
    assert len(jobs) == 4, printed
    last = cluster.wait(jobs[-1], "COMPLETED", "FAILED", "CANCELLED", timeout_s=400)
    assert last["JobState"] == "COMPLETED", printed
    export = tmp_path / "stage3" / "export"
    assert [entry.stage for entry in load_info(export).lineage] == ["stage1", "stage2", "stage3"]
    image = tmp_path / "scene.jpg"
    image.write_bytes(CorpusReader(world.val / "toy_refer").image(0))
    words = ["--max-new-tokens", "4", "--json"]  # a model of a few steps may answer with blanks
    assert cli(["ask", "--model", str(export), str(image), "[refer] the red circle", *words]) == 0
    assert isinstance(json.loads(capsys.readouterr().out)["answer"], str)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "deepspeed"])
def test_other_launchers_train_equally_and_receive_the_warning(
    stage: Stage, unbroken: Path, launcher: str, request: pytest.FixtureRequest
) -> None:
    if launcher == "deepspeed" and shutil.which("pdsh") is None:
        pytest.skip("needs pdsh (apt-get install pdsh)")
    number = stage.submit(launcher, LAUNCHER=launcher)
    stage.wait_for_step(launcher, 5)
    stage.cluster.run("scancel", "--batch", "--signal=USR1", number)
    job = stage.cluster.wait(number, "COMPLETED", "FAILED")
    text = stage.log(launcher)
    assert job["JobState"] == "COMPLETED" and job["Restarts"] == "1", text
    assert "asked to stop; steps 0 to" in text
    ours, theirs = (load_file(run / "export" / "weights.safetensors") for run in (stage.run_dir(launcher), unbroken))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    logs = list((stage.run_dir(launcher) / "slurm").rglob("*.log"))
    assert len(logs) >= 4, logs


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["srun", "torchrun"])
def test_the_doctor_sees_real_nodes(cluster: Cluster, tmp_path: Path, launcher: str) -> None:
    number = cluster.run(
        "sbatch",
        "--parsable",
        "--nodes=3",
        "--gpus-per-node=0",
        "--ntasks-per-node=1",
        "--cpus-per-task=1",
        f"--output={tmp_path}/doctor.log",
        "launch/slurm/doctor.sbatch",
        f"--shared={tmp_path}",
        "--seconds=2",
        LAUNCHER=launcher,
        MINIGPTV2_LOGS=str(tmp_path),
    ).strip()
    job = cluster.wait(number, "COMPLETED", "FAILED")
    text = (tmp_path / "doctor.log").read_text()
    assert job["JobState"] == "COMPLETED" and "the nodes can train together" in text, text
    for rank in range(3):
        assert f"rank {rank}: node{rank + 1}, cpu" in text
        assert f"files: node{rank + 1} sees files of other nodes within" in text


@pytest.mark.slow
def test_the_doctor_names_a_node_whose_folder_is_its_own(cluster: Cluster, tmp_path: Path) -> None:
    done = cluster.run(
        "srun",
        "--nodes=2",
        "--ntasks-per-node=1",
        "--nodelist=node1,node2",
        "bash",
        "-c",
        'exec "$0" -c "$1"',
        sys.executable,
        "from pathlib import Path; from minigptv2.doctor.nodes import check_nodes; "
        f"print(check_nodes(Path('{cluster.folder}/local'), seconds=0.2, patience_s=4).text())",
    )
    assert re.search(r"PROBLEM: node[12] does not see files that node[12] wrote", done), done


@pytest.mark.slow
def test_evaluation_on_two_nodes_answers_every_question_once(stage: Stage, unbroken: Path, world: World) -> None:
    output = stage.folder / "evaluation"
    number = stage.cluster.run(
        "sbatch",
        "--parsable",
        "--nodes=2",
        "--gpus-per-node=0",
        "--ntasks-per-node=1",
        "--cpus-per-task=1",
        f"--output={output}.log",
        "launch/slurm/evaluate.sbatch",
        f"--model={unbroken}/export",
        f"--shards={world.val}",
        "--corpus=toy_refer",
        "--corpus=toy_vqa",
        "--limit=6",
        f"--output={output}",
        MINIGPTV2_LOGS=str(stage.folder),
    ).strip()
    job = stage.cluster.wait(number, "COMPLETED", "FAILED")
    assert job["JobState"] == "COMPLETED", Path(f"{output}.log").read_text()
    rows = [json.loads(line) for file in output.rglob("predictions.jsonl") for line in file.read_text().splitlines()]
    asked = {
        (job.spec.name, question.id)
        for job in heldout_jobs(world.val, ["toy_refer", "toy_vqa"])
        for question in questions_of(CorpusReader(job.corpus), asking_of(job.spec), limit=6)
    }
    assert len(rows) == len(asked) > 12
    assert {(row["benchmark"], row["id"]) for row in rows} == asked
    assert [log.name for log in sorted(stage.folder.glob(f"{number}.0/rank-*.log"))] == ["rank-0.log", "rank-1.log"]


@pytest.mark.slow
def test_a_node_that_fails_early_over_pdsh_does_not_leave_others_waiting(cluster: Cluster, tmp_path: Path) -> None:
    """For example if the port is in use. With srun and torchrun all nodes are one step, which Slurm ends."""
    if shutil.which("pdsh") is None:
        pytest.skip("needs pdsh (apt-get install pdsh)")
    log = tmp_path / "job.log"
    number = cluster.run(
        "sbatch",
        "--parsable",
        "--nodes=2",
        f"--output={log}",
        "--wrap",
        f"PATH={REPOSITORY}/launch/slurm/srun_as_ssh:$PATH pdsh -S -R ssh -w node1,node2 "
        "'if [[ $SLURMD_NODENAME == node1 ]]; then exit 3; else sleep 500; fi'",
        MINIGPTV2_STOP_OTHERS_AFTER_S="5",
    ).strip()
    job = cluster.wait(number, "COMPLETED", "FAILED", timeout_s=60)
    said = log.read_text()
    assert job["JobState"] == "FAILED", said
    assert "node1: exit code 3, and other nodes ran on for 5 s: their steps are stopped" in said
    assert cluster.run("squeue", "--noheader") == ""
