"""Own data by the thousand, each file changed so that the right outcome is known: the same samples, or a named error.

One module per format. `make fuzz-own` runs all of them, and `test_fuzz.py` a few cases of each.
"""
