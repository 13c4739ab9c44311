"""Converts model files: published checkpoints, DeepSpeed folders, PEFT adapters and merged models."""
