"""Converts checkpoint folders of DeepSpeed's `engine.save_checkpoint` (ZeRO 1 to 3, any world size) to exports."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from minigptv2.convert import names
from minigptv2.convert.inputs import KeyReport, first_line, refuse_existing
from minigptv2.errors import CheckpointError
from minigptv2.files import disguise_of
from minigptv2.model.bases import hash_bases, names_to_export, open_bases
from minigptv2.model.build import build_model
from minigptv2.model.config import ModelConfig
from minigptv2.model.export import ExportContent, ExportInfo, LineageEntry, save_export, tokenizer_of
from minigptv2.model.weights import canonical_name, check_finite, check_shapes, named_canonical, plain_tensors

LATEST = "latest"
ALLOWED_CLASSES = {
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
    "deepspeed.runtime.zero.config.ZeroStageEnum",
    "deepspeed.utils.tensor_fragment.fragment_address",
    "deepspeed.accelerator.real_accelerator",
    "torch.nn.parameter.Parameter",
    "argparse.Namespace",
}
"""The classes besides tensors that DeepSpeed writes into its pickles. Reading them runs no code from the file."""


def from_deepspeed(
    checkpoint: Path, output: Path, config: ModelConfig, *, tag: str | None = None, overwrite: bool = False
) -> tuple[ExportInfo, KeyReport]:
    """Write an export of the fp32 master weights. Projector and LoRA keys may also have the published names.

    `config` is the model that was trained. `tag` selects a checkpoint of the folder, by default the one in the file
    `latest`. Every file is scanned before it is read, and refused if it names anything but tensors, plain values and
    `ALLOWED_CLASSES`. Raises `CheckpointError` for missing, unknown or empty tensors, and for frozen tensors that
    differ from the base weights of the config.
    """
    refuse_existing(output, overwrite, checkpoint, config.vision_weights, config.language_weights)
    tag = tag or _latest(checkpoint)
    folder = checkpoint / tag
    files = sorted(folder.glob("*.pt"))
    if not any(file.name.endswith("_optim_states.pt") for file in files):
        raise CheckpointError(f"{folder} has no *_optim_states.pt and is not a checkpoint of ZeRO 1, 2 or 3")
    for file in files:
        _refuse_code(file)
    state = _consolidated(checkpoint, tag)
    report, found = KeyReport(), {}
    for key, value in state.items():
        name = canonical_name(key)
        name = names.PROJECTOR.get(key) or names.lora_name(key) or name
        if key.endswith("inv_freq"):
            report.drop(str(folder), key, "a buffer, recomputed")
        else:
            found[name] = value
            report.take(str(folder), key, name)
    return _write(found, folder, output, config, report), report


def _write(found: dict[str, Tensor], folder: Path, output: Path, config: ModelConfig, report: KeyReport) -> ExportInfo:
    tokenizer = tokenizer_of(config)
    bases = open_bases(config)
    with torch.device("meta"):
        model = build_model(config, tokenizer.vocab_size)
    wanted = {name: tuple(parameter.shape) for name, parameter in named_canonical(model).items()}
    check_shapes(plain_tensors(found), wanted, str(folder))
    for name, value in found.items():
        check_finite(name, value, str(folder))
    exported = names_to_export(model, config, {})
    missing = [name for name in exported if name not in found]
    if missing:
        raise CheckpointError(f"{folder} has no weights for {len(missing)} parameters, first {missing[0]}")
    for base in bases:
        for name, tensor in base.tensors.items():
            if name in found and name not in exported:
                if not torch.equal(found[name], tensor.read().to(found[name].dtype)):
                    raise CheckpointError(
                        f"{folder}: frozen {name} differs from {base.folder}; set the base weights of the run"
                    )
                key = next(k for k, n in report.taken[str(folder)].items() if n == name)
                del report.taken[str(folder)][key]
                report.drop(str(folder), key, f"frozen, and equal in {base.folder}")
    lineage = [LineageEntry(f"deepspeed {folder.name}", _steps(folder.name))]
    tensors = {name: found[name] for name in exported}
    content = ExportContent(tensors, config, tokenizer, lineage, hash_bases(bases))
    return save_export(output, content, more=report.write)


def _latest(checkpoint: Path) -> str:
    file = checkpoint / LATEST
    if not file.is_file():
        raise CheckpointError(
            f"{checkpoint} has no file '{LATEST}', which DeepSpeed's save_checkpoint writes; set --tag instead"
        )
    return file.read_text().strip()


def _refuse_code(file: Path) -> None:
    """Raise `CheckpointError` if reading the pickle would call anything but `ALLOWED_CLASSES`."""
    from torch.serialization import get_unsafe_globals_in_checkpoint

    if disguise := disguise_of(file, binary=True):
        raise CheckpointError(f"{file} is {disguise}; expected a file of torch.save")
    try:
        named = set(get_unsafe_globals_in_checkpoint(str(file)))
    except Exception as error:
        raise CheckpointError(f"{file}: not a valid PyTorch file: {first_line(error)}") from error
    foreign = sorted(named - ALLOWED_CLASSES)
    if foreign:
        found = f"contains a Python object ({foreign[0]}) that may run code when read"
        raise CheckpointError(f"{file} {found}; save the checkpoint without such client state")


def _consolidated(checkpoint: Path, tag: str) -> dict[str, Tensor]:
    """The fp32 weights by parameter name, from DeepSpeed's own function that joins the shards of the ranks."""
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    try:
        state = get_fp32_state_dict_from_zero_checkpoint(str(checkpoint), tag)
    except (ValueError, KeyError, RuntimeError, FileNotFoundError, AssertionError) as error:
        raise CheckpointError(f"{checkpoint / tag}: DeepSpeed cannot join its shards: {error}") from error
    state = {name: value.detach() for name, value in state.items()}
    # DeepSpeed omits frozen parameters under ZeRO-1. The module state, complete in one file, contains them.
    module_file = checkpoint / tag / "mp_rank_00_model_states.pt"
    if module_file.is_file():
        module = torch.load(module_file, map_location="cpu", mmap=True, weights_only=False)["module"]  # scanned above
        state |= {name: value for name, value in (module or {}).items() if name not in state}
    empty = [name for name, value in state.items() if value.numel() == 0]
    if empty:
        raise CheckpointError(f"{checkpoint / tag}: {len(empty)} empty tensors, first {empty[0]}")
    return state


def _steps(tag: str) -> int:
    digits = tag.removeprefix("global_step")
    return int(digits) if digits.isdigit() else 0
