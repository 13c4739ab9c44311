"""Tests the work before the first step: loading into shards, the packing check, rehearsing the largest pack."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from minigptv2.data.collate import fullest_pack
from minigptv2.data.config import DataConfig
from minigptv2.errors import LeakError
from minigptv2.model import minigptv2 as model_module
from minigptv2.model import proof
from minigptv2.model.minigptv2 import MiniGPTv2
from minigptv2.model.proof import prove_packing
from minigptv2.model.weights import named_canonical
from minigptv2.pack_layout import PackLayout
from tests.model.tiny import ALL_PARTS, VOCABULARY, tiny_model
from tests.ranks import run_ranks


def test_ranks_read_their_own_rows_only_and_each_byte_once(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    tensors = {name: p.detach().clone() for name, p in named_canonical(tiny_model(ALL_PARTS, seed=3)).items()}
    save_file(tensors, file)
    results = run_ranks("tests.engine.numerics:load_from_files", 2, tmp_path, file=str(file), folder=str(tmp_path))
    shared_rows = sum(tensor[0].numel() for tensor in tensors.values())  # one row may span two shards
    total = results[0]["total"]
    biases = 2 * 96  # q, k and v of the vision encoder: `transformers` creates new ones, so they are not sharded
    assert total - biases <= sum(result["elements"] for result in results) <= total + shared_rows
    for result in results:
        assert result["equal"] and result["whole"] == 2
        assert result["largest"] <= max(tensor.numel() for tensor in tensors.values()) * 0.6
        assert len(result["lines"]) == 10 and result["lines"][-1].startswith("loading weights: 100 % after")


@pytest.mark.parametrize(("zero", "ranks"), [(3, 2), (2, 1), (0, 1)])
def test_a_rehearsal_changes_nothing(tmp_path: Path, zero: int, ranks: int) -> None:
    results = run_ranks("tests.engine.numerics:rehearse_and_step", ranks, tmp_path, folder=str(tmp_path), zero=zero)
    for result in results:
        for key in ("losses", "norms", "sums"):
            assert result["plain"][key] == result["rehearsed"][key], key


@pytest.mark.parametrize(
    ("settings", "batch", "tokens", "images"),
    [
        ({"max_tokens": 60, "max_pack_tokens": 200}, 64, 200, 10),
        ({"max_tokens": 60, "max_pack_tokens": 4000}, 2, 128, 2),
    ],
)
def test_the_largest_pack_is_as_large_as_the_settings_allow(
    settings: dict[str, int], batch: int, tokens: int, images: int
) -> None:
    pack = fullest_pack(DataConfig(**settings), image_size=32, tokens_per_image=4, global_batch_size=batch).inputs
    lengths = torch.bincount(pack["segment_ids"][0])[1:]
    assert pack["input_ids"].shape[1] == tokens and pack["pixel_values"].shape[0] == images == len(lengths)
    assert int(lengths.max()) <= settings["max_tokens"] + 4
    tiny_model(ALL_PARTS)(**pack)["loss_sum"].backward()


def test_the_packing_check_passes_and_reports_its_result() -> None:
    model = tiny_model(["projector", "lora"], lora_r=4)
    assert model.training
    assert "by exactly 0 (attention packed_sdpa, cpu" in prove_packing(model, torch.device("cpu"))
    assert model.training


def test_the_packing_check_stops_a_run_whose_attention_leaks(monkeypatch: pytest.MonkeyPatch) -> None:
    class Leaky:
        """Ignores the boundaries of samples in a pack."""

        @staticmethod
        def of(position_ids: torch.Tensor, labels: torch.Tensor) -> object:
            supervised = PackLayout.of(position_ids, labels).supervised
            return SimpleNamespace(kwargs=dict, shares_images=False, supervised=supervised)

    monkeypatch.setattr(model_module, "PackLayout", Leaky)
    with pytest.raises(LeakError, match=r"changed by [1-9].* with neighbors \(must be 0\)"):
        prove_packing(tiny_model(ALL_PARTS), torch.device("cpu"))


def large_logits(dtype: torch.dtype) -> MiniGPTv2:
    """A tiny model in `dtype` whose logits are as large as those of a trained model, so that rounding shows."""
    model = tiny_model(["projector"], vocabulary=VOCABULARY).to(dtype)
    with torch.no_grad():
        model.language_model.lm_head.weight.mul_(400)
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_packing_check_allows_what_rounding_explains(dtype: torch.dtype) -> None:
    found = re.search(
        r"they are (\S+) from .* noise of (\S+)$", prove_packing(large_logits(dtype), torch.device("cpu"))
    )
    assert found and float(found[1]) < proof.NOISE_FACTOR * float(found[2])


def test_the_packing_check_allows_more_noise_than_a_fixed_tolerance(monkeypatch: pytest.MonkeyPatch) -> None:
    """In bf16, losses of real weights differ by more than 0.1 nat in 15 % of draws, with a correct mask."""
    original = proof._losses

    def noisy(*args: Any, **settings: Any) -> list[torch.Tensor]:
        parts = original(*args, **settings)
        away = 0.2 if settings.get("noise") is not None else 0.0
        return [part + away + (0.15 if len(parts) == 1 else 0.0) for part in parts]

    monkeypatch.setattr(proof, "_losses", noisy)
    assert "they are 1.5e-01" in prove_packing(tiny_model(["projector"]), torch.device("cpu"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_packing_check_stops_a_run_whose_attention_hides_a_sample_from_itself(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    """Neighbors change nothing, but in a pack each token sees only itself."""
    original = PackLayout.of

    def blind(position_ids: torch.Tensor, labels: torch.Tensor) -> PackLayout:
        several = int((position_ids == 0).sum()) > 1
        return original(torch.zeros_like(position_ids) if several else position_ids, labels)

    monkeypatch.setattr(model_module.PackLayout, "of", blind)
    with pytest.raises(LeakError, match=r"changed by 0.0e\+00 with neighbors .* \(must be at most 5 times the noise\)"):
        prove_packing(large_logits(dtype), torch.device("cpu"))
