"""Benchmarks that need a GPU. Each is a module, `python -m benchmarks.gpu.<name>`. With `--tiny` it runs on a CPU.

Full-size models get random weights on the device, which take the same time and memory as real ones. Times are medians
of device events after a warm-up, with new random inputs. `benchmarks/results/gpu_*.json` holds measured results only.
"""
