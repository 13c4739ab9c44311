"""MiniGPT-v2, trained in three stages under DeepSpeed ZeRO-3. `src/minigptv2/README.md` draws the house."""

__version__ = "0.1.0"
