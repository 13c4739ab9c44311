"""Finds what a run starts from (parent export, base weights, newest checkpoint) and checks that it may resume."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from minigptv2.cluster import distributed
from minigptv2.config import Loaded, flat_values, render_yaml
from minigptv2.data.plan import SAMPLE_ORDER, DataPlan
from minigptv2.engine.checkpoint import CheckpointState, Identity, load_state
from minigptv2.engine.config import load_deepspeed_config
from minigptv2.engine.saver import choose_checkpoint
from minigptv2.errors import CheckpointError, ConfigError
from minigptv2.files import wait_until_seen, write_atomically
from minigptv2.model.base_hashes import hash_bases
from minigptv2.model.bases import Base, check_base_hashes, open_bases
from minigptv2.model.build import sizes_of
from minigptv2.model.export import ExportInfo, load_info, open_weights, tokenizer_in
from minigptv2.run_config import RunConfig, check_identity, check_resume, check_sample_order
from minigptv2.run_folder import RunFolder
from minigptv2.secrets import redact_all
from minigptv2.tokenizer import Tokenizer


@dataclass(frozen=True)
class Start:
    """What a run starts from. `identity` and `known` are saved in each checkpoint and compared on resume.

    `parent` is the export of the previous stage, `bases` are the folders of base weights, `checkpoint` is the newest
    intact one with its state (None: start at step 0), `changes` lists the allowed config changes since then. `known` is
    the resolved config, recipe and DeepSpeed JSON by dotted key.
    """

    parent: ExportInfo | None
    bases: list[Base]
    identity: Identity
    known: dict[str, Any]
    checkpoint: tuple[Path, CheckpointState] | None
    changes: list[str]

    @property
    def step(self) -> int:
        """Number of steps that are done."""
        return self.checkpoint[1].step if self.checkpoint else 0


def find_start(loaded: Loaded[RunConfig], tokenizer: Tokenizer, plan: DataPlan, *, fresh: bool, resume: bool) -> Start:
    """Find what the run starts from and prepare its folder. A collective.

    Raises `CheckpointError` on all ranks if something is missing, damaged or incompatible.
    """
    config = loaded.value
    parent = _load_parent(config, tokenizer)
    bases = open_bases(config.model)
    identity = _identity(config, tokenizer, plan, bases, parent)
    known = _resume_record(loaded, plan)
    checkpoint, changes = _prepare_run_folder(config, identity, known, fresh=fresh, resume=resume)
    return Start(parent, bases, identity, known, checkpoint, changes)


def check_stage_before(config: RunConfig, *, fresh: bool) -> None:
    """Raise `CheckpointError` if the export that this stage starts from does not exist.

    Raises `ConfigError` if it is among the results that `fresh` removes.
    """
    folder = RunFolder(Path(config.run_dir))
    if fresh and config.init_from is not None:
        parent = Path(config.init_from).resolve()
        if any(parent.is_relative_to(results.resolve()) for results in folder.results):
            raise ConfigError(f"--fresh would remove init_from={config.init_from}; set another run_dir")
    if config.init_from is not None and not Path(config.init_from).is_dir():
        raise CheckpointError(
            f"{config.stage} starts from init_from={config.init_from}, but there is no such export: the previous stage "
            "is missing or not finished. Train it first, name another export, or set init_from=null to use none"
        )


def refuse_other_order(config: RunConfig) -> None:
    """Raise `CheckpointError` on all ranks if the run's newest checkpoint was written with another order of samples.

    Called before the data plan is built: it may fail on a corpus of an old version, which would hide this reason.
    """
    run = Path(config.run_dir)

    def read() -> None:
        for folder in RunFolder(run).checkpoint_folders():
            try:
                state = load_state(folder)
            except CheckpointError:  # `find_start` reports damaged checkpoints and takes the one before
                continue
            return check_sample_order(state.identity.sample_order, SAMPLE_ORDER, run, folder)

    distributed.on_main(read)


def _load_parent(config: RunConfig, tokenizer: Tokenizer) -> ExportInfo | None:
    """The export that this stage starts from, after checking weights, tokenizer and sizes. None for a first stage."""
    if config.init_from is None:
        return None
    folder = config.init_from

    def read() -> tuple[ExportInfo, dict[str, int]]:
        info = load_info(folder)
        open_weights(info)
        if difference := tokenizer.differences_from(tokenizer_in(info)):
            raise CheckpointError(
                f"init_from={folder} was trained with another tokenizer than {tokenizer.path}: {difference}. "
                "Leave model.tokenizer out to use that of the export."
            )
        return info, {file.name: file.stat().st_size for file in sorted(info.folder.iterdir()) if file.is_file()}

    parent, files = distributed.on_main(read)
    for name, num_bytes in files.items():  # another node may have written them a moment ago
        wait_until_seen(parent.folder / name, num_bytes)
    sizes = sizes_of(config.model)
    pairs = {
        "vision encoder": (sizes.vision_encoder, parent.sizes.vision_encoder),
        "language model": (sizes.language_model, parent.sizes.language_model),
    }
    if parent.model.lora.r and config.model.lora.r:
        lora = [(m.lora.r, m.lora.alpha, sorted(m.lora.target_modules)) for m in (config.model, parent.model)]
        pairs["LoRA's rank, alpha and modules"] = (lora[0], lora[1])
    for what, (current, saved) in pairs.items():
        if current != saved:
            raise CheckpointError(f"init_from={config.init_from}: its {what} is {saved}, but this run's is {current}")
    return parent


def _identity(
    config: RunConfig, tokenizer: Tokenizer, plan: DataPlan, bases: list[Base], parent: ExportInfo | None
) -> Identity:
    """Hashes of the contents that must be equal on resume. Raises if the parent was trained on other base weights."""
    hashes = distributed.on_main(lambda: hash_bases(bases))
    if parent:
        check_base_hashes(parent.base_sha256, hashes, str(parent.folder), bases)
    return Identity(
        tokenizer_sha256=tokenizer.sha256,
        data_plan=plan.fingerprint(),
        seed=config.seed,
        init_from=parent.weights_sha256 if parent else None,
        base_sha256=hashes,
        sample_order=SAMPLE_ORDER,
    )


def _resume_record(loaded: Loaded[RunConfig], plan: DataPlan) -> dict[str, Any]:
    """The resolved config, recipe and DeepSpeed JSON by dotted key, which are compared on resume."""
    record = {
        **loaded.flat,
        **flat_values(asdict(plan.recipe), "recipe."),
        **flat_values(load_deepspeed_config(loaded.value.train.deepspeed), "deepspeed."),
    }
    return cast(dict[str, Any], redact_all(record))


def _prepare_run_folder(
    config: RunConfig,
    identity: Identity,
    known: dict[str, Any],
    *,
    fresh: bool,
    resume: bool,
) -> tuple[tuple[Path, CheckpointState] | None, list[str]]:
    """Write the resolved config and choose the checkpoint to resume from, the same on all ranks.

    Returns the checkpoint with its state (None: start at step 0) and the allowed config changes since it was written.
    """
    run = Path(config.run_dir)
    if fresh:
        distributed.on_main(RunFolder(run).clear)
    checkpoint = choose_checkpoint(run, lambda text: print(f"warning: {text}", flush=True))
    changes: list[str] = []
    if checkpoint is None:
        if resume:
            raise CheckpointError(f"--resume: there is no checkpoint in {run} to resume from")
    else:
        folder, state = checkpoint
        check_sample_order(state.identity.sample_order, identity.sample_order, run, folder)
        changes = check_resume(state.config, known, folder)
        check_identity(asdict(state.identity), asdict(identity), folder)
    distributed.on_main(lambda: write_config(config))
    return checkpoint, changes


def write_config(config: RunConfig) -> None:
    """Write `config.yaml` of the run. Raises `ConfigError` if the folder cannot be used."""
    file = RunFolder(Path(config.run_dir)).config
    try:
        write_atomically(file, render_yaml(redact_all(asdict(config))).encode())
    except OSError as error:
        raise ConfigError(f"run_dir={config.run_dir} cannot be used: {error.strerror or error} ({file})") from error
