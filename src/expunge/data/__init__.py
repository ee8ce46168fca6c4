# SPDX-License-Identifier: Apache-2.0
"""Examples and named sets, how they are loaded, tokenised, batched and paired."""

from expunge.data.digests import data_digest
from expunge.data.examples import Example, Splits, Turn
from expunge.data.loaders import check_overlap, load_examples

__all__ = ["Example", "Splits", "Turn", "check_overlap", "data_digest", "load_examples"]
