# SPDX-License-Identifier: Apache-2.0
"""The pages in a real Chromium: nothing is stopped by the policy or fetched from elsewhere, and they work by hand."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the dashboard needs the extra `serve`")
pytest.importorskip("playwright", reason="needs the package playwright")

import uvicorn
from dashboard_world import Door, hand_in, light_desk
from playwright.sync_api import Browser, Page, sync_playwright

from expunge.dashboard.roles import Role
from expunge.ledger.states import State

CHROMIUM = Path("/usr/bin/chromium")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM.exists(), reason="needs Debian's chromium in /usr/bin"),
]
WIDTHS = (1280, 390)


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Door:
    desk = light_desk(tmp_path_factory.mktemp("browser") / "desk")
    hand_in(desk, "new", days_ago=1)
    hand_in(desk, "late", upto=State.PLANNED, days_ago=40)
    hand_in(desk, "going", upto=State.RUNNING)
    hand_in(desk, "long-name-without-any-place-to-break-it-0123456789-0123456789", upto=State.ON_HOLD)
    hand_in(desk, "gone", upto=State.WITHDRAWN)
    return Door(desk)


@pytest.fixture(scope="module")
def address(door: Door) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(door.app, host="127.0.0.1", port=port, log_level="error"))
    thread = Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(timeout=10)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield browser
        browser.close()


def signed_in(door: Door, address: str, chromium: Browser, role: Role, **more: Any) -> tuple[Page, list[str]]:
    """A page of a role, and what went wrong on it: messages of the console, and calls that left this machine."""
    page, wrong = chromium.new_page(**more), list[str]()
    page.on("console", lambda said: wrong.append(said.text) if said.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda sent: None if sent.url.startswith(address) else wrong.append(sent.url))
    page.goto(f"{address}/")
    page.get_by_label("Your token").fill(door.tokens[role])
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url(f"{address}/")
    return page, wrong


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_every_page_fits_and_breaks_no_rule(
    door: Door, address: str, chromium: Browser, scheme: Any, width: int
) -> None:
    page, wrong = signed_in(door, address, chromium, Role.OPERATOR, viewport={"width": width, "height": 800},
                            color_scheme=scheme)  # fmt: skip
    for path in ("/", "/?show=late", "/intake", "/runs", "/verify", *(f"/requests/{view.id}" for view in
                                                                     door.desk.ledger.requests())):  # fmt: skip
        page.goto(address + path)
        assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0, path
        assert page.locator("h1").count() == 1, path
        assert page.evaluate(CONTRAST) == [], path
    assert wrong == []
    page.close()


#: Texts whose contrast against what lies behind them is below 4.5 (WCAG 2.1, 1.4.3; large text counts alike here).
CONTRAST = """() => {
  const part = (c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const light = (c) => 0.2126 * part(c[0]) + 0.7152 * part(c[1]) + 0.0722 * part(c[2]);
  const colour = (text) => text.match(/[\\d.]+/g).map(Number);
  const behind = (e) => {
    for (; e; e = e.parentElement) {
      const c = colour(getComputedStyle(e).backgroundColor);
      if (c.length < 4 || c[3] > 0.99) return c;
    }
    return [255, 255, 255];
  };
  const found = [];
  for (const e of document.querySelectorAll("body *")) {
    const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!own || !e.checkVisibility() || e.closest("svg, .sr, .skip")) continue;
    const [a, b] = [light(colour(getComputedStyle(e).color)), light(behind(e))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) found.push(`${e.className} ${e.textContent.trim().slice(0, 30)}: ${ratio.toFixed(2)}`);
  }
  return found;
}"""


def test_a_request_is_handed_in_and_verified_by_hand(door: Door, address: str, chromium: Browser) -> None:
    page, wrong = signed_in(door, address, chromium, Role.OPERATOR)
    page.get_by_role("link", name="New request").first.click()
    page.get_by_label("copyright").check()
    page.get_by_label("Asked by").fill("case-77")
    page.get_by_label("Names, numbers, addresses to look for").fill("Jane Example\nExample Ltd")
    page.get_by_role("button", name="Hand it in").click()
    page.get_by_text("The request came in.").wait_for()
    page.get_by_role("button", name="Verified").click()
    page.get_by_text("Moved.").wait_for()
    view = door.desk.ledger.request(page.locator("h1").inner_text())
    assert (view.state, view.what, view.requester) == (State.VERIFIED, "copyright", "case-77")
    assert wrong == []
    page.close()


def test_it_works_by_keyboard_and_keeps_the_theme(door: Door, address: str, chromium: Browser) -> None:
    page, wrong = signed_in(door, address, chromium, Role.APPROVER, color_scheme="light")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.get_by_role("button", name="Switch to the dark theme").press("Enter")
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.goto(f"{address}/requests/late")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == dark
    page.get_by_role("button", name="Approve this plan").press("Enter")
    page.get_by_text("Approved. A worker takes it from here").wait_for()
    assert door.desk.ledger.request("late").state is State.APPROVED
    assert wrong == []
    page.close()


def test_the_page_follows_a_run_by_itself(door: Door, address: str, chromium: Browser) -> None:
    page, wrong = signed_in(door, address, chromium, Role.AUDITOR)
    page.goto(f"{address}/requests/going")
    run = door.desk.folder / "runs" / "u-going"
    run.mkdir(parents=True)
    (run / "run.json").write_text(json.dumps({"status": "running", "recipe": {"training": {"max_steps": 20}}}))
    (run / "metrics.jsonl").write_text(json.dumps({"step": 7, "loss": 1.5}) + "\n")
    page.get_by_text("step 7 of 20, loss 1.500").wait_for(timeout=8000)
    (run / "metrics.jsonl").write_text("".join(json.dumps({"step": k, "loss": 1.5}) + "\n" for k in (7, 8)))
    page.get_by_text("step 8 of 20").wait_for(timeout=8000)
    door.desk.ledger.append(_failed(), actor="worker", request="going")
    page.get_by_text("The run failed: plan again, or refuse").wait_for(timeout=8000)
    assert wrong == []
    page.close()


def test_a_page_that_follows_a_run_leads_to_the_sign_in_when_the_session_ends(
    door: Door, address: str, chromium: Browser
) -> None:
    hand_in(door.desk, "later", upto=State.APPROVED)
    page, _ = signed_in(door, address, chromium, Role.OPERATOR)
    page.goto(f"{address}/requests/later")
    page.context.clear_cookies()
    page.wait_for_url(f"{address}/login", timeout=8000)
    page.close()


def _failed() -> Any:
    from expunge.ledger.bodies import Failed

    return Failed(error="TrainingDiverged: the loss stopped being a number", exit_code=1)


def test_a_wrong_certificate_is_refused_in_words(door: Door, address: str, chromium: Browser, tmp_path: Path) -> None:
    page, wrong = signed_in(door, address, chromium, Role.AUDITOR)
    file = tmp_path / "<img src=x onerror=alert(1)>.json"
    file.write_text("{}")
    page.get_by_role("link", name="Verify").click()
    page.get_by_label("Certificate").set_input_files(file)
    page.get_by_role("button", name="Verify").click()
    page.get_by_text("Do not rely on it").wait_for()
    assert page.locator("main img").count() == 0
    assert wrong == []
    page.close()
