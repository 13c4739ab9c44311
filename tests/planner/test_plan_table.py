"""Tests `minigptv2 plan`: known results, the right plan for each kind of cluster, and no import of torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from minigptv2.cli import main as cli
from minigptv2.engine.config import load_deepspeed_config
from minigptv2.errors import ConfigError
from minigptv2.model.backbones import Sizes, language_spec, vision_spec
from minigptv2.model.config import ModelConfig
from minigptv2.model.costs import ModelCosts
from minigptv2.planner.hardware import GIB, describe
from minigptv2.planner.step_time import Samples, layers_to_recompute, option, options, recommended
from minigptv2.planner.zero_plan import ZeroPlan
from minigptv2.run_config import load_run_config
from minigptv2.train import limit
from tests.conftest import REPOSITORY

PLANS = {
    name: ZeroPlan.of(name, load_deepspeed_config(REPOSITORY / "deepspeed_configs" / f"{name}.json"))
    for name in ("zero3", "zero3_hpz", "zero3_int8", "zero3_offload", "zero2")
}
SAMPLES = Samples()


@pytest.fixture(scope="module")
def costs() -> ModelCosts:
    return ModelCosts(ModelConfig(), Sizes(vision_spec("eva_vit_g"), language_spec("llama2_7b")))


def test_plain_zero3_gathers_29_gb_of_frozen_weights_a_micro_batch(costs: ModelCosts) -> None:
    """2 x 13.48 GB of language model and 1.97 GB of vision encoder, less what is still gathered for backward."""
    traffic = PLANS["zero3"].traffic(costs.parts, ranks=8, gpus_per_node=8, micro_batches=1)
    assert traffic.frozen == pytest.approx(28.9e9 - 1e9, rel=0.01)
    thrice = PLANS["zero3"].traffic(costs.parts, ranks=8, gpus_per_node=8, micro_batches=3)
    assert thrice.frozen == 3 * traffic.frozen


def test_unsharded_frozen_weights_cost_no_traffic(costs: ModelCosts) -> None:
    traffic = PLANS["zero2"].traffic(costs.parts, ranks=8, gpus_per_node=8, micro_batches=1)
    zero3 = PLANS["zero3"].traffic(costs.parts, ranks=8, gpus_per_node=8, micro_batches=1)
    assert traffic.total == pytest.approx(0.2265e9, rel=0.01) and zero3.total >= 100 * traffic.total
    hpz = PLANS["zero3_hpz"].traffic(costs.parts, ranks=16, gpus_per_node=8, micro_batches=1)
    int8 = PLANS["zero3_int8"].traffic(costs.parts, ranks=8, gpus_per_node=8, micro_batches=1)
    assert int8.frozen == zero3.frozen / 2
    assert hpz.frozen == 0 and hpz.inside_node == zero3.frozen


@pytest.mark.parametrize("ranks", [2, 4, 8, 16])
def test_8_bit_gathers_run_on_powers_of_two_up_to_16(costs: ModelCosts, ranks: int) -> None:
    assert PLANS["zero3_int8"].refusal(costs.smallest_parameters, ranks) == ""


@pytest.mark.parametrize("ranks", [3, 6, 12, 24, 32, 48, 64, 512])
def test_8_bit_gathers_are_refused_where_deepspeed_asserts(costs: ModelCosts, ranks: int) -> None:
    """1,408 elements of a bias of EVA ViT-g on 32 ranks are 44, which the quantizer does not take."""
    why = PLANS["zero3_int8"].refusal(costs.smallest_parameters, ranks)
    assert (
        f"with {ranks} ranks some have another number. It runs on {min(16, 2 ** (ranks.bit_length() - 1))} ranks" in why
    )
    for other in ("zero3", "zero3_hpz", "zero2"):
        assert PLANS[other].refusal(costs.smallest_parameters, ranks) == ""


def test_the_plan_of_32_gpus_says_what_it_left_out(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(REPOSITORY)
    words = ["plan", "--config", "launch/configs/stage3_instruct.yaml", "--gpus", "32", "--gpu-memory", "80"]
    assert cli([*words, "train.global_batch_size=96"]) == 0
    said = capsys.readouterr().out
    assert "not compared: zero3_int8.json gathers weights in 8 bits" in said and "recommended:" in said


def test_a_run_on_ranks_that_cannot_quantize_stops_before_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limit.distributed, "world_size", lambda: 32)
    monkeypatch.chdir(REPOSITORY)
    config = load_run_config("launch/configs/stage3_instruct.yaml").value
    limit.check_ranks(config, load_deepspeed_config("deepspeed_configs/zero3.json"))
    with pytest.raises(ConfigError, match="with 32 ranks"):
        limit.check_ranks(config, load_deepspeed_config("deepspeed_configs/zero3_int8.json"))


def test_a_rank_holds_its_share_of_a_sharded_model_and_all_of_an_unsharded_one(costs: ModelCosts) -> None:
    def weights(plan: str, ranks: int) -> float:
        state = PLANS[plan].state_bytes(costs.parts, ranks)
        return state["vision_encoder"] + state["language_model"]

    whole = 2 * (987_033_600 + 6_738_415_616)
    for ranks in (1, 2, 8, 64):
        assert weights("zero3", ranks) == pytest.approx(whole / ranks)
        assert weights("zero2", ranks) == whole
        assert weights("zero3_hpz", ranks) == pytest.approx(whole / ranks + whole / 8)
    assert weights("zero3_int8", 8) == weights("zero3", 8) and weights("zero3_offload", 8) == 0


@pytest.mark.parametrize(
    ("machines", "plan"),
    [
        ({"gpu": "h100", "gpus": 8}, "zero2"),
        ({"gpu": "a100-40", "gpus": 16, "network_gbytes": 11.0}, "zero2"),
        ({"gpu": "rtx4090", "gpus": 8}, "zero2"),
        ({"gpu": "rtx4090", "gpus": 8, "memory_gib": 16.0}, "zero3"),
    ],
)
def test_the_recommended_plan_of_each_regime(costs: ModelCosts, machines: dict[str, object], plan: str) -> None:
    hardware = describe(**machines)  # type: ignore[arg-type]
    plans = [one for one in PLANS.values() if one.hpz <= hardware.gpus]
    found = options(costs, plans, hardware, SAMPLES, global_batch=64)
    best = recommended(found, hardware)
    assert best is not None and best.memory_total <= hardware.memory
    assert best.plan.name.startswith(plan) and not best.plan.quantized


def test_plain_zero3_with_small_packs_is_bound_by_the_network(costs: ModelCosts) -> None:
    """Bound by the network below 3 to 5 samples per micro-batch on NVLink, and below 30 to 49 at 45 GB/s."""
    for machines, samples in (({"gpus": 8}, 4), ({"gpus": 16, "network_gbytes": 45.0}, 35)):
        hardware = describe(gpu="h100", **machines)  # type: ignore[arg-type]
        bounds = {}
        for size in (samples // 2, 2 * samples):
            one = option(costs, PLANS["zero3"], hardware, SAMPLES, global_batch=size * hardware.gpus, micro_batch=size)
            bounds[size] = one.times.bound
        assert list(bounds.values()) == ["wire", "compute"], bounds


def test_layers_are_recomputed_only_as_memory_requires(costs: ModelCosts) -> None:
    pack = SAMPLES.work(16384 / SAMPLES.tokens)
    layers = [
        layers_to_recompute(costs, PLANS["zero3"], ranks=8, memory=gib * GIB, pack=pack) for gib in (20, 40, 60, 141)
    ]
    assert layers == sorted(layers, reverse=True) and layers[0] > layers[-1] == 0
    fits = option(
        costs,
        PLANS["zero3"],
        describe(gpu="a100-40", gpus=8),
        Samples(max_pack_tokens=16384),
        global_batch=8 * 54,
        micro_batch=54,
        recomputed_layers=layers[1],
    )
    assert fits.memory_total <= 40 * GIB


def test_the_command_prints_a_table_and_json(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(REPOSITORY)
    words = ["plan", "--config", "launch/configs/stage3_instruct.yaml", "--gpus", "8", "--gpu-memory", "80"]
    assert cli([*words, "--network", "50"]) == 0
    text = capsys.readouterr().out
    assert "recommended: train.deepspeed=deepspeed_configs/zero2.json" in text and "bound by" in text
    assert cli([*words, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["recommended"] == "zero2.json" and set(report["options"]) >= {"zero3.json", "zero3_hpz.json"}
    assert cli([*words[:-2], "--gpu", "h10"]) == 2 and "did you mean 'h100'" in capsys.readouterr().err
    assert cli(["plan", "--config", "launch/configs/stage3_instruct.yaml", "--gpus", "64"]) == 2
    assert "is not a multiple of" in capsys.readouterr().err


def test_a_plan_needs_no_torch() -> None:
    code = (
        "import sys; from minigptv2.cli import main; "
        "main(['plan', '--config', 'launch/configs/stage1_pretrain.yaml']); "
        "assert not {'torch', 'deepspeed', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(REPOSITORY), capture_output=True)
