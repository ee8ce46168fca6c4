# SPDX-License-Identifier: Apache-2.0
"""How much work Expunge saves, measured: the same numbers computed by Expunge and by plain transformers code.

`python -m benchmarks run` measures both sides in turn, asserts that they give equal numbers, and writes the ratios.
"""
