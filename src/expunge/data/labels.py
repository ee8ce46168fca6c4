# SPDX-License-Identifier: Apache-2.0
"""Other label masks over the same token ids."""

from __future__ import annotations

from expunge.data.encoding import IGNORE, Encoded


def relabel_all(item: Encoded) -> Encoded:
    """Label every position, prompt included."""
    return Encoded(item.ids, item.ids, item.ends_with_eos)


def without_eos_label(item: Encoded) -> Encoded:
    """Take the label off a final end-of-sequence token; the token itself stays."""
    if not item.ends_with_eos:
        return item
    return Encoded(item.ids, (*item.labels[:-1], IGNORE), False)


def without_first_labels(item: Encoded, count: int) -> Encoded:
    """Take the labels off the first `count` labelled tokens that can be scored; the tokens themselves stay."""
    labels, left = list(item.labels), count
    for position in range(1, len(labels)):
        if left and labels[position] != IGNORE:
            labels[position], left = IGNORE, left - 1
    return Encoded(item.ids, tuple(labels), item.ends_with_eos and labels[-1] != IGNORE)
