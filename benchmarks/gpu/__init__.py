"""Runs that need a GPU. Each is a module: `python -m benchmarks.gpu.<name>`; with `--tiny` it runs small on a CPU.

Full-size models get random weights on the device, which cost and save what real ones do. Timed with device events
after a warm-up, medians, fresh random inputs. Nothing under `benchmarks/results/gpu_*.json` unless it was measured.
"""
