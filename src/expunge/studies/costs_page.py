# SPDX-License-Identifier: Apache-2.0
"""The cost of guarantees as a page: what was paid for which, what may be said of it, and what the numbers rest on.

Run as `python -m expunge.studies.costs_page RESULTS.json PAGE.md`.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from expunge.claims import SENTENCES, ClaimKind
from expunge.report.words import check, listed, number
from expunge.runs import write_text

Found = Mapping[str, Any]
Reader = Callable[[Found], float | None]
#: Titles of the routes.
_TITLES: Mapping[str, str] = {
    "target": "nothing done (target)", "retrain": "retraining from the public model",
    "adapters": "an adapter for each customer",
}  # fmt: skip
#: Ways among the chosen settings that train customers, beside the methods that change the target.
_TRAINED = ("private", "adapters")
_DASH = "–"


def write_page(document: Found, page: Path) -> None:
    """Write the page."""
    write_text(page, check("\n".join(_page(document)) + "\n"))


def title(name: str) -> str:
    """Return what a route is called on the page."""
    if name.startswith("sisa "):
        shards, slices = name.removeprefix("sisa ").split("x")
        return f"SISA {shards} × {slices}"
    if name.startswith("dp "):
        epsilon, _, unit = name.removeprefix("dp ").partition(", ")
        return f"private training (ε = {epsilon} a {unit or 'sequence'})"
    return _TITLES.get(name, f"`{name}` on the target")


def rows_of(document: Found) -> dict[str, list[Found]]:
    """Return the results of every route, one a seed, each with the target's time where it shares the target."""
    runs = document["runs"]
    out: dict[str, list[Found]] = {}
    for by_route in runs.values():
        for name, found in by_route.items():
            whose = found if found["prepare_seconds"] is not None else by_route["target"]
            near = found["after"]["metrics"]
            reference = by_route["retrain"]["after"]["metrics"]
            gap = near["forget.probability"]["value"] - reference["forget.probability"]["value"]
            ratios = {"prepare": whose["prepare_seconds"] / beside(whose), "gap": gap,
                      "serve": found["serve_seconds"] / beside(found)}  # fmt: skip
            out.setdefault(name, []).append({**found, **ratios})
    return out


def beside(found: Found) -> float:
    """Return the mean processor seconds of the two retrainings around a route."""
    before, after = found["retraining"]["seconds"]
    return float(before + after) / 2


def metric(when: str, name: str) -> Reader:
    """Return what reads a metric before or after the request."""
    return lambda found: found[when]["metrics"][name]["value"]


def canary(when: str, name: str) -> Reader:
    """Return what reads a bound, or the rate at 1 % false alarms, before or after the request."""

    def read(found: Found) -> float | None:
        shown = found[when]["canaries"]
        entry = shown["tpr_at_1_fpr"] if name == "tpr" else shown["epsilon"][name]
        return entry["value"]  # type: ignore[no-any-return]

    return read


def cell(found: Sequence[Found], read: Reader, form: Callable[[float], str] = number) -> str:
    """Return the median over the seeds with the smallest and the largest, one number where they print alike."""
    values = [value for one in found if (value := read(one)) is not None]
    if not values:
        return _DASH
    low, middle, high = form(min(values)), form(statistics.median(values)), form(max(values))
    dash = " to " if min(values) < 0 else "–"
    return middle if low == high else f"{middle} [{low}{dash}{high}]"


def short(value: float) -> str:
    """Return a number with two decimals."""
    return f"{round(value, 2) + 0.0:.2f}".replace("-", "−")  # + 0.0: no minus before zero


def _page(document: Found) -> list[str]:
    rows = rows_of(document)
    return [
        "# What each guarantee costs", "", *_lead(document, rows), "", *_trade(rows), "",
        "## What was measured in full", "", *_measured(rows), "", "## What was paid", "", *_paid(rows), "",
        "## What may be said", "", *_claims(rows), "", "## How it was made, and what it cannot show", "",
        *_made(document, rows),
    ]  # fmt: skip


def _lead(document: Found, rows: Mapping[str, Sequence[Found]]) -> list[str]:
    inserted = [found["after"]["canaries"]["epsilon"]["one_run"]["inserted"] for found in rows["target"]]
    return [
        f"One customer of {document['customers']} asks to leave a model. What does each way to serve that cost, and "
        f"what may be said afterwards? {len(rows)} ways, from the same public model, records and request, on "
        f"{len(document['seeds'])} invented archives. Every number is the median over them, with the smallest and the "
        "largest.", "",
        *_short_version(rows), "",
        "How to read the table: *others* is the mean probability of the answers about the other customers, which the "
        "model is there for. *The person* is the same for the one who left; what counts is the gap to retraining, not "
        f"to zero. *ε ≥* is what {document['canaries']} planted canaries show at least, before and after: those that "
        f"fair coins inserted ({_span(inserted)}) are records in that person's name and part of the request. "
        "*Serving* is processor time, retraining being 1. SISA 4 × 2 has four shards of two slices.",
    ]  # fmt: skip


def _short_version(rows: Mapping[str, Sequence[Found]]) -> list[str]:
    """Return one line a claim: what was paid and what was left, in numbers alone."""

    def each(names: Sequence[str], read: Reader) -> str:
        return listed([cell(rows[name], read, short) for name in names])

    sharded = [name for name in rows if name.startswith("sisa")]
    private = [name for name in rows if name.startswith("dp")]
    methods = [name for name, found in rows.items() if found[0]["claim"] == ClaimKind.APPROXIMATE]
    others, gap, left = metric("after", "retain.probability"), (lambda one: one["gap"]), canary("after", "one_run")
    known = metric("after", "known.probability")
    before = cell(rows["target"], others, short)
    return [
        f"- **Exact.** The others' answers, {before} before the request, have {each(['retrain'], others)} after "
        f"retraining. {listed([title(name) for name in sharded])} have {each(sharded, others)}, and serve the request "
        f"in {each(sharded, _serving)} of the time. Adapters have {each(['adapters'], others)} and serve it in "
        f"{each(['adapters'], _serving)}, where it is known which customer a question is about; what the model knew "
        f"before has {each(['adapters'], known)} with them and {each(['retrain'], known)} after retraining.",
        f"- **Statistical.** Nothing is done when the request comes. {_capital(listed([title(n) for n in private]))} "
        f"have {each(private, others)} on the others' answers. A bound for sequences says nothing about a person with "
        "so many of them; a bound for persons does.",
        f"- **Approximate.** {_capital(listed([title(name) for name in methods]))} serve the request in "
        f"{each(methods, _serving)} of the time and have {each(methods, others)} on the others' answers. On the "
        f"person's they are {each(methods, gap)} from retraining, and the canaries still show ε ≥ "
        f"{each(methods, left)}: nothing is proven, whatever the tests find.",
    ]  # fmt: skip


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _span(values: Sequence[int]) -> str:
    return f"{min(values)}" if min(values) == max(values) else f"{min(values)} to {max(values)}"


def _table(heads: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads), *("| " + " | ".join(r) + " |" for r in body)]


def _trade(rows: Mapping[str, Sequence[Found]]) -> list[str]:
    heads = ["way", "claim", "others", "the person", "gap to retraining", "ε ≥ before", "ε ≥ after", "serving",
             "weights kept"]  # fmt: skip
    body = [
        [
            title(name), found[0]["claim"] or _DASH, cell(found, metric("after", "retain.probability"), short),
            cell(found, metric("after", "forget.probability"), short), cell(found, lambda one: one["gap"], short),
            cell(found, canary("before", "one_run"), short), cell(found, canary("after", "one_run"), short),
            cell(found, _serving, short) if found[0]["served"] else _DASH,
            cell(found, lambda one: one["kept_bytes"] / one["model_bytes"], short),
        ]
        for name, found in rows.items()
    ]  # fmt: skip
    return _table(heads, body)


def _serving(found: Found) -> float:
    return float(found["serve"])


def _measured(rows: Mapping[str, Sequence[Found]]) -> list[str]:
    """Return what was measured before and after, beside what stands in the first table."""
    heads = ["way", "others, before", "public knowledge, after", "the person, before", "word for word, after",
             "first choices, after", "canaries found, before", "after"]  # fmt: skip
    body = [
        [
            title(name), cell(found, metric("before", "retain.probability")),
            cell(found, metric("after", "known.probability")), cell(found, metric("before", "forget.probability")),
            cell(found, metric("after", "forget.extraction_strength")),
            cell(found, metric("after", "forget.exact_memorization")), cell(found, canary("before", "tpr")),
            cell(found, canary("after", "tpr")),
        ]
        for name, found in rows.items()
    ]  # fmt: skip
    words = (
        "*Public knowledge*: answers that the model knew before it saw any customer. *Word for word*: extraction "
        "strength of the person's answers. *First choices*: exact memorisation. *Canaries found*: share of the "
        "inserted ones above a threshold that at most 1 % of the held-out ones reach."
    )
    return [words, "", *_table(heads, body)]


def _paid(rows: Mapping[str, Sequence[Found]]) -> list[str]:
    heads = ["way", "learning the customers", "serving this request", "serving another customer's",
             "models an answer passes", "weights kept", "needed to serve"]  # fmt: skip
    body = [
        [
            title(name), cell(found, lambda one: one["prepare"], short),
            cell(found, _serving, short) if found[0]["served"] else _DASH,
            cell(found, lambda one: one["typical"], short), cell(found, lambda one: one["passes"], lambda v: f"{v:g}"),
            cell(found, lambda one: one["kept_bytes"] / one["model_bytes"], short), found[0]["needs"],
        ]
        for name, found in rows.items()
    ]  # fmt: skip
    spread = [max(one["retraining"]["seconds"]) / min(one["retraining"]["seconds"])
              for found in rows.values() for one in found]  # fmt: skip
    words = (
        "Times are processor seconds of one process of one thread over those of retraining, which ran before and after "
        f"every two ways; the two differ by a factor of {statistics.median(spread):.2f} in the median and "
        f"{max(spread):.2f} at most, so read nothing into small differences: retraining's own row shows what the clock "
        "is worth. Measuring is in none of them. *Another customer's* request: by the plan, rows read again over rows "
        "that retraining reads, mean over all other customers. *Weights kept*: bytes needed to answer and to serve the "
        "next request, in models; where training starts from the public model, that is counted. Copies of the records "
        "are not."
    )
    return [words, "", *_table(heads, body)]


def _claims(rows: Mapping[str, Sequence[Found]]) -> list[str]:
    """Return the sentences by kind of claim, and the answers that private training gave."""
    kinds: dict[str, list[str]] = {}
    for name, found in rows.items():
        if found[0]["claim"]:
            kinds.setdefault(found[0]["claim"], []).append(title(name))
    lines = [f"- **{kind}** ({listed(names)}): {SENTENCES[ClaimKind(kind)]}" for kind, names in kinds.items()]
    private = {name: found for name, found in rows.items() if "statement" in found[0]["served"]}
    lines += ["", "What private training answered to this request, without changing a weight:", ""]
    for name, found in private.items():
        lines.append(f"- {title(name)}: {_statement(found)}")
    lines += [
        "",
        "An exact way other than retraining gives the model that its own way of training gives without the "
        "person, not the one that retraining gives: compare the two in what they can do, not in their weights.",
    ]
    return lines


def _statement(found: Sequence[Found]) -> str:
    said = [one["served"]["statement"] for one in found]
    sizes = sorted({entry["group_size"] for entry in said})
    one = said[0]["of_one"]
    text = f"for one unit ε = {one['epsilon']:.3g}, δ = {one['delta']:g}"
    size = f"{sizes[0]} units" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]} units"
    if all(entry["says_something"] for entry in said):
        return f"{text}; the request is about {'one unit' if sizes == [1] else size}, for which this holds."
    return f"{text}; the request is about {size}, and for a group of that size the bound says nothing."


def _made(document: Found, rows: Mapping[str, Sequence[Found]]) -> list[str]:
    first = rows["target"][0]
    share = statistics.median(one["request"] / (one["request"] + one["retained"]) for one in rows["target"])
    power = first["after"]["canaries"]["epsilon"]["one_run"]
    lines = [
        f"A Llama of {document['shape']['layers']} layers of width {document['shape']['hidden_size']} learned an "
        f"invented world and {document['public']} people; {document['customers']} further people are the customers, 16 "
        f"records each. Seeds {listed([str(seed) for seed in document['seeds']])}. The canaries are of the design "
        f"`{document['design']}`, which the study of [designs](canaries.md#which-canaries-are-found) found most often; "
        "they begin like records of people whom no model saw. "
        f"{document['canaries']} of them could have shown ε up to {power['power']:.2f} (δ {power['delta']:g}, "
        f"confidence {power['confidence']:.0%}): a larger leak cannot be seen here, and a bound of 0 does not say that "
        "there is none.",
        _settings(document), _choice(document), _bits(document),
    ]  # fmt: skip
    limits = [
        f"- The request is {share:.0%} of all customers' records, because of the canaries in it. A shard of SISA that "
        "holds such a person holds little else, so this request is cheap to serve there; the column for another "
        "customer's request shows the usual case.",
        "- Canaries of new tokens need rows of the embedding and the head to move. Adapters leave both frozen, so the "
        "canaries show less there before the request: the audit is weaker, which does not say that adapters leak less.",
        "- Private training has few records here. What it costs with more, this page cannot show. Runs that were "
        "compared to choose its settings are not in its ε; they were on another archive.",
        "- The canaries' bound is about single sequences. Where the unit is a person it is a lower bound too, since a "
        "guarantee for a person is one for each of their sequences.",
        "- The intervals of single seeds are in the results; three seeds give a range, no test. Relearning, "
        "quantisation, probing and prompts were *not tested* on any row.",
        "- Adapters are asked by the customer a question is about. Where that is not known, joining them costs far "
        "more ([exact routes](exact-routes.md#what-it-costs)).",
    ]  # fmt: skip
    made = (
        "Made by `python -m expunge.studies.costs_study` and `python -m expunge.studies.costs_page`; every number, "
        "with the environment, is in `results/guarantee-costs.json`."
    )
    return [*(part for line in lines for part in (line, "")), *limits, "", made]


def _choice(document: Found) -> str:
    """Say how settings were chosen."""
    tried = document["tried"]
    methods = listed([f"`{name}` ({len(trials)})" for name, trials in tried.items() if name not in _TRAINED])
    return (
        f"{sum(len(trials) for trials in tried.values())} settings were tried on another archive (seed "
        f"{document['tuning_seed']}), by rules fixed beforehand. Private training ({len(tried['private'])}, at one ε) "
        f"and adapters ({len(tried['adapters'])}): the highest probability of the others' answers. {methods}: of those "
        f"that keep {document['keep']:.0%} of the target's, the one closest to retraining on the person's answers. The "
        "other ways were not tuned: SISA trains each shard with the target's settings, on less data."
    )


def _bits(document: Found) -> str:
    """Say whether retraining gave the same weights every time."""
    found = {seed: {digest for one in routes.values() for digest in one["retraining"]["digests"]}
             for seed, routes in document["runs"].items()}  # fmt: skip
    if all(len(digests) == 1 for digests in found.values()):
        return "On each archive every retraining, those for the clock included, gave the same bits."
    most = max(len(digests) for digests in found.values())
    return f"Retraining did not give the same bits every time: up to {most} different results on one archive."


def _settings(document: Found) -> str:
    chosen, training = document["chosen"], document["training"]
    private, adapters = chosen["private"], chosen["adapters"]
    said = [
        f"whole models learn at {training['learning_rate']:g} for {training['epochs']} epochs in batches of "
        f"{training['batch_size']}",
        f"adapters of rank {document['lora']['r']} at {adapters['learning_rate']:g} for {adapters['epochs']} epochs in "
        f"batches of {adapters['batch_size']}",
        f"private training at {private['learning_rate']:g} for {private['epochs']} epochs, {private['batch_size']} "
        f"sequences a step on average (twice the epochs, and all people in every step, where the unit is a person), "
        f"δ {document['privacy']['delta']:g}",
    ]  # fmt: skip
    said += [f"`{name}` at {settings['learning_rate']:g} for {settings['epochs']} epochs in batches of "
             f"{settings['batch_size']}"
             for name, settings in chosen.items() if name not in _TRAINED]  # fmt: skip
    return f"Settings: {'; '.join(said)}."


if __name__ == "__main__":
    write_page(json.loads(Path(sys.argv[1]).read_text("utf-8")), Path(sys.argv[2]))
