"""Compares the ZeRO plans for a run on a given cluster, as a table with a recommendation (`minigptv2 plan`)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from minigptv2.engine.config import check_train_config, load_deepspeed_config
from minigptv2.model.backbones import Sizes, language_spec, vision_spec
from minigptv2.model.costs import ModelCosts
from minigptv2.planner.hardware import GIB, Hardware
from minigptv2.planner.step_time import Option, Samples, options, recommended
from minigptv2.planner.zero_plan import ZeroPlan
from minigptv2.redacted_files import json_text
from minigptv2.run_config import RunConfig
from minigptv2.shipped import find
from minigptv2.tokenizer import load_tokenizer

BOUNDS = {
    "compute": "the GPUs' arithmetic: more GPUs, or fewer FLOPs (shared images, no recomputation)",
    "wire": "gathers over the network: larger micro-batches, or a plan that keeps frozen weights whole or per node",
    "data": "decoding images: more cores per GPU, or images baked to the model's size",
    "host memory": "copies from host memory: larger micro-batches, or no offload",
}


def costs_of(config: RunConfig) -> ModelCosts:
    """The costs of a run's model. A model whose spec has no vocabulary size uses that of its tokenizer."""
    sizes = Sizes(vision_spec(config.model.vision_encoder), language_spec(config.model.language_model))
    vocabulary = None
    if sizes.language_model.vocab_size is None:
        vocabulary = load_tokenizer(Path(str(config.model.tokenizer))).vocab_size
    return ModelCosts(config.model, sizes, vocab_size=vocabulary)


def shipped_plans(config: RunConfig, folder: Path) -> list[ZeroPlan]:
    """The run's own DeepSpeed JSON first, then the GPU plans beside it in `folder`."""
    own = find(config.train.deepspeed)
    files = [own] + [file for file in sorted(find(folder).glob("zero*.json")) if "cpu" not in file.stem and file != own]
    return [ZeroPlan.of(file.name, load_deepspeed_config(file)) for file in files]


def plan_run(
    config: RunConfig, hardware: Hardware, samples: Samples, plans: list[ZeroPlan], *, fused: bool = False
) -> dict[str, Any]:
    """The options of a run as plain values, with the recommended one. `text` is the table for people.

    Raises `ConfigError` if the global batch size is not a multiple of the number of GPUs.
    """
    costs = costs_of(config)
    check_train_config(replace(config.train, micro_batch_size=1), hardware.gpus)
    refused = [plan.refusal(costs.smallest_parameters, hardware.gpus) for plan in plans]
    plans = [plan for plan, why in zip(plans, refused, strict=True) if plan.hpz <= hardware.gpus and not why]
    found = options(costs, plans, hardware, samples, global_batch=config.train.global_batch_size, fused=fused)
    best = recommended(found, hardware)
    lines = [_head(config, hardware, samples, costs), "", *_table(found, hardware), ""]
    if best is None:
        smallest = min(found, key=lambda one: one.memory_total)
        lines.append(
            f"nothing fits: the smallest plan, {smallest.plan.name}, needs {smallest.memory_total / GIB:.1f} GiB of "
            f"{hardware.memory / GIB:.0f}. Use more GPUs, a lower data.max_pack_tokens, or offload."
        )
    else:
        lines += _recommendation(best, found, hardware, config)
    lines += [f"not compared: {why}" for why in refused if why]
    lines += ["", *_assumptions(hardware)]
    return {
        "recommended": best.plan.name if best else None,
        "micro_batch_size": best.micro_batch if best else None,
        "recompute_layers": best.recomputed_layers if best else None,
        "options": {one.plan.name: _values(one) for one in found},
        "text": "\n".join(lines),
    }


def render_json(report: dict[str, Any]) -> str:
    """The report as JSON, without `text`."""
    return json_text({key: value for key, value in report.items() if key != "text"})


def _values(one: Option) -> dict[str, Any]:
    return {
        "micro_batch_size": one.micro_batch,
        "micro_batches": one.micro_batches,
        "recompute_layers": one.recomputed_layers,
        "memory_bytes": one.memory,
        "memory_total_bytes": one.memory_total,
        "traffic_bytes": one.traffic.__dict__,
        "step_s": one.times.predicted,
        "limit_s": one.times.limit,
        "bound": one.times.bound,
    }


def _head(config: RunConfig, hardware: Hardware, samples: Samples, costs: ModelCosts) -> str:
    parts = ", ".join(f"{part.name} {part.elements / 1e6:,.1f} M{' (trained)' * part.trained}" for part in costs.parts)
    return (
        f"{config.stage}: {parts}\n"
        f"{hardware.gpus} GPU(s) on {hardware.nodes} node(s), {hardware.memory / GIB:.0f} GiB each; global batch "
        f"{config.train.global_batch_size}; a mean sample of {samples.tokens:g} tokens, {samples.images:g} image(s), "
        f"{samples.supervised:g} supervised; packs of at most {samples.max_pack_tokens} tokens"
    )


def _table(found: list[Option], hardware: Hardware) -> list[str]:
    names: list[str] = []
    for one in found:
        names += [name for name in one.memory if name not in names]
    rows = [["GiB per rank", *[one.plan.name for one in found]]]
    for name in names:
        rows.append([f"  {name.replace('_', ' ')}", *[f"{one.memory.get(name, 0.0) / GIB:.2f}" for one in found]])
    rows.append(["  in all", *[f"{one.memory_total / GIB:.2f}" for one in found]])
    fits = [one.memory_total <= hardware.memory for one in found]
    rows.append(["fits", *["yes" if fit else "NO" for fit in fits]])
    rows.append(["micro-batch x accumulation", *[f"{one.micro_batch} x {one.micro_batches}" for one in found]])
    rows.append(["layers recomputed", *[str(one.recomputed_layers) for one in found]])
    rows.append(["GB over the slowest link", *[f"{one.traffic.total / 1e9:.2f}" for one in found]])
    rows.append(["  of frozen weights", *[f"{one.traffic.frozen / 1e9:.2f}" for one in found]])
    rows.append(["GB inside a node", *[f"{one.traffic.inside_node / 1e9:.2f}" for one in found]])
    rows.append(["s a step: arithmetic", *[f"{one.times.kernels:.3f}" for one in found]])
    rows.append(["          wire", *[f"{one.times.wire:.3f}" for one in found]])
    rows.append(["          data", *[f"{one.times.data:.3f}" for one in found]])
    rows.append(["          predicted", *[f"{one.times.predicted:.3f}" for one in found]])
    rows.append(["bound by", *[one.times.bound for one in found]])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _recommendation(best: Option, found: list[Option], hardware: Hardware, config: RunConfig) -> list[str]:
    rate = config.train.global_batch_size / best.times.predicted
    others = [one for one in found if one is not best]
    lines = [
        f"recommended: train.deepspeed=deepspeed_configs/{Path(best.plan.name).name} "
        f"train.micro_batch_size={best.micro_batch} model.recompute_layers={best.recomputed_layers}",
        f"  {best.times.predicted:.3f} s a step, {rate:.0f} samples/s, bound by {best.times.bound}: "
        + BOUNDS[best.times.bound],
        f"  {best.memory_total / GIB:.1f} of {hardware.memory / GIB:.0f} GiB at the fullest pack",
    ]
    for one in others:
        if one.memory_total > hardware.memory:
            why = f"does not fit: {one.memory_total / GIB:.1f} GiB"
        elif one.plan.quantized and not best.plan.quantized:
            ratio = one.times.predicted / best.times.predicted
            why = f"{ratio:.2f} x as long, and it rounds the frozen weights to 8 bits"
        elif one.times.predicted > 1.02 * best.times.predicted:
            why = f"{one.times.predicted / best.times.predicted:.2f} x as long, bound by {one.times.bound}"
        else:
            less, more = best.memory_total - one.memory_total, one.traffic.total - best.traffic.total
            why = f"as fast here, {less / GIB:+.1f} GiB free, {more / 1e9:.1f} GB a step more over the wire"
        lines.append(f"  {one.plan.name}: {why}")
    return lines


def _assumptions(hardware: Hardware) -> list[str]:
    return [
        f"assumed: {hardware.matmul / 1e12:.0f} TFLOP/s of matrix products, {100 * hardware.kernel_share:.0f} % of it "
        f"in whole layers; {hardware.gather_rate / 1e9:.0f} GB/s into a rank in gathers; "
        f"{hardware.decode_rate:.0f} images/s a core x {hardware.cores_per_gpu:g} cores a GPU. "
        "These are predictions, not measurements. The log of a run shows the rates it reaches.",
    ]
