"""Published checkpoints in, ours out: one function a direction, each writing its result whole or not at all."""
