"""Compares seconds per sample of our trainer and Hugging Face's Trainer with DeepSpeed ZeRO-3 on two CPU processes.

    python -m benchmarks.engine.overhead

Both sides train the same small model on the same samples of different lengths, with the same optimizer and ZeRO stage.
The Hugging Face side is what a user writes with it: padded micro-batches with a mask, logits at all positions, and
DeepSpeed's JSON defaults. Also measures the share of our step outside forward, backward and optimizer.
"""

from __future__ import annotations

import tempfile
import time
from typing import Any

import numpy as np

from benchmarks.engine.ranks import on_ranks
from benchmarks.results import report, spread

SAMPLES, STEPS, WARM = 64, 5, 2
"""Samples per step over both ranks, one micro-batch on each as in the demo's stages. Timed and warm-up steps."""


def lengths_of(step: int, rank: int) -> list[int]:
    """Return the lengths of a rank's samples of a step: 24 to 160 tokens, mostly short like answers."""
    rng = np.random.default_rng([step, rank])
    return [int(24 + 136 * draw**2) for draw in rng.random(SAMPLES // 2)]


def examples_of(step: int, rank: int) -> tuple[list[Any], list[np.ndarray]]:
    """Return a rank's examples of a step, each with an image."""
    from benchmarks.engine import small
    from minigptv2.batch import IGNORE
    from minigptv2.prompt import IMAGE_PLACEHOLDER, Example

    rng = np.random.default_rng([7, step, rank])
    examples, images = [], []
    for length in lengths_of(step, rank):
        ids = rng.integers(3, 600, length)
        ids[1 : 1 + small.VISION.tokens_per_image] = IMAGE_PLACEHOLDER
        labels = np.full(length, IGNORE)
        labels[-8:] = ids[-8:]
        examples.append(Example(ids, labels, np.zeros(length, dtype=np.int64), 1))
        images.append(rng.integers(0, 256, (3, small.VISION.image_size, small.VISION.image_size), dtype=np.uint8))
    return examples, images


def packed(step: int, rank: int) -> dict[str, Any]:
    """Return a rank's pack of a step, as the loader distributes samples: over both ranks, with equal costs."""
    from benchmarks.engine import small
    from minigptv2.data.collate import collate
    from minigptv2.data.packing import Cost, pack_step

    both = [examples_of(step, other) for other in range(2)]
    examples, images = ([one for side in both for one in side[part]] for part in range(2))
    costs = [Cost(len(example), len(example) + small.VISION.tokens_per_image, 1) for example in examples]
    mine = pack_step(costs, num_ranks=2, min_packs_per_rank=1, max_pack_tokens=8192)[rank]
    return collate([examples[i] for i in mine], [images[i] for i in mine], small.VISION.image_size)


def ours_timed() -> dict[str, float]:
    """Run our trainer on this rank."""
    import torch.distributed as dist

    from benchmarks.engine import small

    device = small.start()
    document = {"zero_optimization": {"stage": 3, "overlap_comm": False}}
    trainer = small.make_trainer(
        document, small.model_config(r=8), device, global_batch=SAMPLES, micro_batch=SAMPLES // 2
    )
    inside = 0.0

    def clocked(name: str) -> None:
        original = getattr(trainer.engine, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal inside
            began = time.perf_counter()
            result = original(*args, **kwargs)
            inside += time.perf_counter() - began
            return result

        setattr(trainer.engine, name, call)

    batches = [packed(step, dist.get_rank()) for step in range(STEPS + WARM)]
    for batch in batches[:WARM]:
        trainer.train_step([batch])
    for name in ("forward", "backward", "step"):
        clocked(name)
    began = time.perf_counter()
    for batch in batches[WARM:]:
        trainer.train_step([batch])
    seconds = time.perf_counter() - began
    return {"per_sample": seconds / (STEPS * SAMPLES), "outside": 1 - inside / seconds}


def theirs_timed() -> dict[str, float]:
    """Run Hugging Face's Trainer on this rank."""
    import torch
    import torch.distributed as dist
    from torch import Tensor, nn
    from torch.utils.data import Dataset
    from transformers import Trainer, TrainerCallback, TrainingArguments

    from benchmarks.engine import small
    from minigptv2.batch import IGNORE

    small.start()
    torch.set_num_threads(1)
    length = STEPS + WARM

    class Samples(Dataset[dict[str, Any]]):
        """The same samples in the order in which the two ranks get them."""

        def __len__(self) -> int:
            return length * SAMPLES

        def __getitem__(self, index: int) -> dict[str, Any]:
            step, place = divmod(index, SAMPLES)
            number, rank = divmod(place, 2)
            examples, images = examples_of(step, rank)
            return {"example": examples[number], "image": images[number]}

    def padded(samples: list[dict[str, Any]]) -> dict[str, Tensor]:
        longest = max(len(sample["example"]) for sample in samples)
        ids = torch.zeros(len(samples), longest, dtype=torch.long)
        labels = torch.full((len(samples), longest), IGNORE)
        mask = torch.zeros(len(samples), longest, dtype=torch.long)
        for row, sample in enumerate(samples):
            count = len(sample["example"])
            ids[row, :count] = torch.from_numpy(sample["example"].input_ids)
            labels[row, :count] = torch.from_numpy(sample["example"].labels)
            mask[row, :count] = 1
        pixels = torch.from_numpy(np.stack([sample["image"] for sample in samples]))
        return {"input_ids": ids, "labels": labels, "attention_mask": mask, "pixel_values": pixels}

    class Model(nn.Module):
        """Combines the same modules in the usual way, with the library's own loss."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = small.plain_model(small.model_config(r=8))
            self.inner.language_model.set_attn_implementation("sdpa")
            self.config = self.inner.language_model.config

        def forward(self, input_ids: Tensor, labels: Tensor, attention_mask: Tensor, pixel_values: Tensor) -> Any:
            embeddings = self.inner.embed(input_ids, pixel_values)
            logits = self.inner.language_model(inputs_embeds=embeddings, attention_mask=attention_mask).logits
            shifted = logits[:, :-1].float().flatten(0, 1)
            return {"loss": nn.functional.cross_entropy(shifted, labels[:, 1:].flatten(), ignore_index=IGNORE)}

    class Clock(TrainerCallback):
        """Records when the timed steps begin and end."""

        began = ended = 0.0

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == WARM:
                self.began = time.perf_counter()
            self.ended = time.perf_counter()

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=SAMPLES // 2,
            max_steps=length,
            learning_rate=1e-3,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            use_cpu=True,
            dataloader_num_workers=0,
            remove_unused_columns=False,
            disable_tqdm=True,
            deepspeed={
                "zero_optimization": {"stage": 3},
                "train_batch_size": "auto",
                "gradient_clipping": "auto",
                "train_micro_batch_size_per_gpu": "auto",
                "gradient_accumulation_steps": "auto",
            },
        )
        clock = Clock()
        trainer = Trainer(
            model=Model(), args=arguments, train_dataset=Samples(), data_collator=padded, callbacks=[clock]
        )
        trainer.get_train_dataloader()
        trainer.train()
    dist.barrier()
    return {"per_sample": (clock.ended - clock.began) / (STEPS * SAMPLES)}


def main(rounds: int = 3) -> list[dict[str, Any]]:
    """Run both sides in turn, `rounds` times, and report."""
    mine, other, outside = [], [], []
    for _ in range(rounds):
        result = on_ranks("benchmarks.engine.overhead:ours_timed", 2)
        mine.append(max(one["per_sample"] for one in result))
        outside.append(max(one["outside"] for one in result))
        other.append(max(one["per_sample"] for one in on_ranks("benchmarks.engine.overhead:theirs_timed", 2)))
    ratio = spread(other)["median"] / spread(mine)["median"]
    rows = [
        {"side": "minigptv2", **{f"{key} s a sample": value for key, value in spread(mine).items()}},
        {
            "side": "HF Trainer + DeepSpeed ZeRO-3",
            **{f"{key} s a sample": value for key, value in spread(other).items()},
        },
    ]
    report(
        "engine_overhead",
        "Trainer overhead on two CPU processes",
        rows,
        packages=["torch", "deepspeed", "transformers", "accelerate", "peft"],
        notes=[
            f"{ratio:.2f} x as fast (goal 2)",
            f"{100 * spread(outside)['median']:.1f} % of our step outside forward, backward and optimizer (goal 3)",
        ],
        more={"ratio": ratio, "outside": spread(outside)},
    )
    return rows


if __name__ == "__main__":
    main()
