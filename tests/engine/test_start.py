"""Tests the work before the first step: loading into shards, the packing check, rehearsing the largest pack."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from minigptv2.data.collate import fullest_pack
from minigptv2.data.config import DataConfig
from minigptv2.errors import LeakError
from minigptv2.model import minigptv2 as model_module
from minigptv2.model.proof import prove_packing
from minigptv2.model.weights import named_canonical
from tests.model.tiny import ALL_PARTS, tiny_model
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
        def of(position_ids: torch.Tensor) -> object:
            return type("Empty", (), {"kwargs": staticmethod(dict)})()

    monkeypatch.setattr(model_module, "PackLayout", Leaky)
    with pytest.raises(LeakError, match=r"changed by [1-9].* with neighbors \(must be 0\)"):
        prove_packing(tiny_model(ALL_PARTS), torch.device("cpu"))
