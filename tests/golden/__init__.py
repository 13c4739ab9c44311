"""Records what the package computes, bit for bit, and compares it after a restructuring.

`python -m tests.golden record FOLDER` writes one JSON per item and the files that old code must leave behind;
`python -m tests.golden compare FOLDER` computes everything again with the package that is importable then.
"""
