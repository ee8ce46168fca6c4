# SPDX-License-Identifier: Apache-2.0
"""What a reader must know of sharded training before believing it."""

from __future__ import annotations

from expunge.claims import ClaimKind, MethodCard

SISA = MethodCard(
    name="sisa",
    title="Sharded, isolated, sliced, aggregated training",
    paper="Machine Unlearning (arXiv:1912.03817)",
    authors="Bourtoule, Chandrasekaran, Choquette-Choo, Jia, Travers, Zhang, Lie, Papernot",
    year=2021,
    venue="IEEE S&P",
    family="exact",
    claim=ClaimKind.EXACT,
    needs=("base_model",),
    cost="training: as plain; one deletion: a share 1/S of it, less with slices; answering: S forwards",
    formula="stage r of shard s: train from stage r-1 on slices 1..r for 2 e / (R + 1) epochs with a fresh optimiser",
    provenance="paper, sections IV and V; batches cut on original positions as in the authors' code",
    differences=(
        "units are subjects with their near-duplicates, not examples",
        "every example has a slice and is covered by its key, the remainder of the division included",
        "keys cover order, settings, start, code and the stage before, not indices alone",
        "every stage has a seed and an optimiser of its own",
    ),
    notes="Exact given the plan: which shard a unit is in was decided when its data was there, near-duplicates by "
    "comparing texts. The start must never have seen the data.",
)
