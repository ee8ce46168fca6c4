# SPDX-License-Identifier: Apache-2.0
"""Every recipe that ships: it resolves, says where it comes from, and holds the numbers that were published."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from expunge.claims import lint
from expunge.methods.registry import get_method
from expunge.recipe import Recipe, TrainRecipe, build_recipe, load_recipe, read_settings

ROOT = Path(__file__).resolve().parents[1]
RECIPES = ROOT / "recipes"
BASES = sorted((RECIPES / "bases").glob("*.yaml"))
#: Recipes of `expunge train`, which have no method.
TRAINED = sorted((RECIPES / "dp").glob("*.yaml"))
FILES = sorted(set(RECIPES.rglob("*.yaml")) - set(BASES) - set(TRAINED))
NAMES = [str(path.relative_to(RECIPES)) for path in FILES]


@cache
def resolved(name: str) -> Recipe:
    return load_recipe(RECIPES / name)


def header(name: str) -> dict[str, list[str]]:
    """The comment lines at the top, by what they start with; continued lines are joined."""
    lines = [line[1:] for line in (RECIPES / name).read_text("utf-8").splitlines() if line.startswith("#")]
    joined = re.sub(r"\n   +", " ", "\n".join(lines))
    out: dict[str, list[str]] = {}
    for line in joined.splitlines():
        key, _, text = line.strip().partition(": ")
        out.setdefault(key, []).append(text)
    return out


def test_there_are_recipes() -> None:
    assert len(FILES) > 50


@pytest.mark.parametrize("name", NAMES)
def test_it_resolves_and_reads_itself_again(name: str) -> None:
    recipe = resolved(name)
    assert recipe.name == name.removesuffix(".yaml").replace("/", "-").replace("_", "-")
    assert build_recipe(recipe.to_dict()).hash == recipe.hash
    method = get_method(recipe.method.name)  # type: ignore[attr-defined]
    if "retain" in method.needs(recipe.method, recipe.training):
        assert recipe.data.retain


@pytest.mark.parametrize("path", TRAINED, ids=lambda path: path.stem)
def test_a_training_recipe_resolves_and_reads_itself_again(path: Path) -> None:
    recipe = TrainRecipe.build(read_settings(path))
    name = str(path.relative_to(RECIPES))
    assert recipe.name == name.removesuffix(".yaml").replace("/", "-").replace("_", "-")
    assert TrainRecipe.build(recipe.to_dict()).hash == recipe.hash
    assert recipe.data.train
    assert recipe.training.privacy is not None
    assert header(name)["Run"] == [f"expunge train recipes/{name}"]
    assert not lint(path.read_text("utf-8"))


@pytest.mark.parametrize("name", NAMES)
def test_its_header_says_where_it_comes_from_and_how_to_run_it(name: str) -> None:
    found = header(name)
    assert set(found) <= {"Source", "Run", "Published", "Differs"}
    assert len(found["Source"]) == len(found["Run"]) == len(found["Published"]) == 1
    assert found["Run"] == [f"expunge run recipes/{name}"]
    assert not lint((RECIPES / name).read_text("utf-8"))


def test_every_base_is_extended_and_is_no_recipe_itself() -> None:
    used = set()
    for path in (*FILES, *BASES):
        parent = yaml.safe_load(path.read_text("utf-8")).get("extends")
        if parent is not None:
            used.add((path.parent / parent).resolve())
    assert used == {path.resolve() for path in BASES}
    assert all("method" not in read_settings(path) for path in BASES)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("tofu/forget10_grad_diff.yaml", {
            "training.learning_rate": 1e-5, "training.epochs": 5, "training.batch_size": 32,
            "training.warmup_ratio": 0.2, "training.optimizer.weight_decay": 0.01, "method.retain_weight": 1.0}),
        ("tofu/forget05_ga_kl.yaml", {"method.kl_positions": "all", "data.retain": "locuslab/TOFU:retain95[train]"}),
        ("npo/tofu_forget01_npo.yaml", {
            "training.epochs": 10, "method.beta": 0.1, "method.reduction": "sum",
            "data.forget": "locuslab/TOFU:forget01[train]"}),
        ("simnpo/tofu_forget05.yaml", {"method.beta": 2.5, "method.forget_weight": 0.1375}),
        ("simnpo/tofu_forget10.yaml", {"method.beta": 4.5, "method.forget_weight": 0.125}),
        ("simnpo/muse_news.yaml", {"method.beta": 0.7, "method.gamma": 0.07, "method.retain_weight": 0.1}),
        ("wmdp/bio_simnpo.yaml", {
            "training.learning_rate": 9.5e-6, "training.max_steps": 500, "training.optimizer.weight_decay": 0.0,
            "method.beta": 0.1, "training.batch_size": 4}),
        ("wmdp/bio_npo.yaml", {"training.learning_rate": 5e-6, "method.beta": 0.0225}),
        ("wmdp/zephyr_rmu.yaml", {
            "method.coefficient": 6.5, "method.retain_weight": 1200.0, "method.layer": 7, "method.trained_blocks": 3,
            "method.tensors": "mlp_output", "method.topics": "subject", "training.learning_rate": 5e-5,
            "training.max_steps": 150, "training.batch_size": 4, "training.max_grad_norm": None,
            "training.schedule": "constant", "training.optimizer.weight_decay": 0.0}),
        ("wmdp/yi_rmu.yaml", {
            "method.coefficient": 300.0, "method.retain_weight": 350.0, "method.layer": 15, "training.max_steps": 400,
            "training.batch_size": 2}),
        ("wmdp/mixtral_rmu.yaml", {
            "method.coefficient": 300.0, "method.retain_weight": 1600.0, "method.layer": 7, "training.max_steps": 400}),
        ("wmdp/zephyr_adaptive_rmu.yaml", {
            "method.beta": 5.0, "method.variant": "official", "method.retain_weight": 1200.0,
            "training.max_steps": 500}),
        ("wmdp/zephyr_cut.yaml", {
            "method.coefficient": 20.0, "method.retain_weight": 5000.0, "training.max_steps": 80}),
        ("openunlearning/tofu_forget10_rmu.yaml", {
            "method.coefficient": 2.0, "method.retain_weight": 1.0, "method.layer": 7, "method.positions": "answer",
            "training.trainable": [".*"], "training.learning_rate": 1e-5, "training.epochs": 10}),
        ("openunlearning/wmdp_cyber_rmu.yaml", {
            "method.coefficient": 2.0, "training.learning_rate": 5e-5, "training.max_steps": 80,
            "training.batch_size": 16, "data.forget": "cais/wmdp-corpora:cyber-forget-corpus[train]"}),
        ("soul/tofu_forget10_grad_diff.yaml", {
            "training.learning_rate": 5e-6, "method.retain_weight": 2.0, "training.optimizer.name": "soul",
            "training.optimizer.betas": [0.9, 0.95], "training.optimizer.rho": 0.04, "training.batch_size": 4,
            "training.optimizer.curvature_batch": 5120, "training.precision": "pure_bf16"}),
        ("soul/tofu_forget10_grad_diff_first_order.yaml", {
            "method.retain_weight": 0.3, "training.optimizer.name": "adamw", "training.optimizer.weight_decay": 0.1}),
        ("soul/tofu_forget10_idk.yaml", {"training.learning_rate": 1e-5, "method.retain_weight": 5.0}),
        ("soul/tofu_forget10_idk_first_order.yaml", {"training.learning_rate": 2e-5, "method.retain_weight": 1.0}),
        ("wagle/tofu_forget10_grad_diff.yaml", {
            "training.learning_rate": 7e-6, "training.mask.ratio": 0.95, "training.mask.mu": 1e-6}),
        ("wagle/tofu_forget10_npo.yaml", {"training.learning_rate": 1e-5, "training.max_steps": 400}),
        ("wagle/tofu_forget10_idk.yaml", {"training.learning_rate": 2e-5, "training.mask.ratio": 0.8}),
        ("wagle/wmdp_bio_grad_diff.yaml", {"training.learning_rate": 5e-6, "training.mask.ratio": 0.4}),
        ("wagle/wmdp_bio_npo.yaml", {"training.learning_rate": 1e-5, "training.mask.ratio": 0.6}),
        ("openunlearning/tofu_forget10_undial.yaml", {"training.learning_rate": 1e-4, "method.beta": 10.0}),
        ("openunlearning/tofu_forget10_wga.yaml", {"training.epochs": 5, "method.beta": 1.0}),
        ("geffect/tofu_forget05_wga.yaml", {"method.beta": 5.0}),
        ("geffect/tofu_forget10_tnpo.yaml", {"method.beta": 4.0, "method.retain": "none"}),
        ("satimp/tofu_forget10.yaml", {"method.beta1": 5.0, "method.beta2": 0.1, "method.retain_weight": 0.1}),
        ("altpo/tofu_forget10.yaml", {
            "training.learning_rate": 5e-5, "training.batch_size": 35, "training.epochs": 2, "method.alternatives": 5}),
        ("flat/tofu_forget01.yaml", {"training.batch_size": 64, "training.epochs": 5}),
        ("pdu/tofu_forget10.yaml", {
            "method.retain_weight": 100.0, "method.dual_rate": 5.0, "method.tolerance": 0.3,
            "method.warmup_epochs": 5}),
        ("pdu/muse_books.yaml", {"method.retain_weight": 50.0, "method.dual_rate": 1.0, "method.tolerance": 0.1}),
        ("muse/news_npo_kl.yaml", {
            "method.retain": "kl", "training.schedule": "constant", "training.warmup_ratio": 0.0,
            "data.max_length": 2048, "training.batch_size": 32}),
    ],
)  # fmt: skip
def test_published_numbers(name: str, expected: dict[str, Any]) -> None:
    settings = resolved(name).to_dict()
    for path, value in expected.items():
        found: Any = settings
        for key in path.split("."):
            found = found[key]
        assert found == value, path


def test_every_method_with_a_published_setting_has_a_recipe() -> None:
    covered = {resolved(name).method.name for name in NAMES}  # type: ignore[attr-defined]
    assert {
        "ga", "grad_diff", "ga_kl", "idk", "dpo", "kto", "npo", "tnpo", "wtnpo", "simnpo", "undial", "wga", "satimp",
        "ceu", "pdu", "altpo", "flat", "rmu", "adaptive_rmu", "cut",
    } <= covered  # fmt: skip
