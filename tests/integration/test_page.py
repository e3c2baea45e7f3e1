"""The page in a real browser, over a swarm of real processes: what it shows, that it answers, and who can use it.

Tests go on from one another: the swarm that one has changed is what the next one meets.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from browser_kit import Shown, browser
from process_kit import awaiting
from serve_kit import Served, served
from swarm_kit import Swarm

from bloombee.serve.keys import read_keys

MARKUP = "<img src=x onerror=alert(1)>"
REACHABLE = "a[href], button, input, textarea, summary, [tabindex='0']"
PROMPT = "def add(a, b):"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as running:
        yield running


@pytest.fixture(scope="module")
def swarm(chromium: Any) -> Iterator[Swarm]:
    """Three workers and a spare."""
    started = Swarm(model="demo", workers=3, spares=1, dtype="float32", threads=1)
    yield started
    started.close()


@pytest.fixture(scope="module")
def server(swarm: Swarm) -> Iterator[Served]:
    with served(swarm) as running:
        yield running


@pytest.fixture(scope="module")
def shown(server: Served, chromium: Any) -> Iterator[Shown]:
    context = chromium.new_context(viewport={"width": 1280, "height": 900}, color_scheme="light")
    one = Shown(context.new_page())
    one.page.goto(server.url)
    one.until("document.getElementById('state').dataset.state === 'up'")
    yield one
    context.close()


class _Load:
    """Requests that go on until it is left, by a client whose name is markup."""

    def __init__(self, swarm: Swarm) -> None:
        self._swarm = swarm

    def __enter__(self) -> None:
        self._over = asyncio.Event()
        self._running: list[Future[None]] = [
            asyncio.run_coroutine_threadsafe(self._ask(number), self._swarm.loop) for number in range(3)
        ]

    def __exit__(self, *_: object) -> None:
        self._swarm.loop.call_soon_threadsafe(self._over.set)
        for one in self._running:
            one.result(60)

    async def _ask(self, number: int) -> None:
        while not self._over.is_set():
            fields = {"max_new_tokens": 64, "temperature": 0.8, "seed": number, "ignore_eos": True}
            await self._swarm.runtime.generate("import ", client=MARKUP, **fields)


def test_a_running_swarm_is_shown_with_its_stages_links_plan_and_requests(shown: Shown, swarm: Swarm) -> None:
    with _Load(swarm):
        shown.until("Number(document.querySelector('[data-speed]').textContent) > 0")
        shown.until("document.querySelectorAll('.flow.moving').length === 4")
        shown.until("[...document.querySelectorAll('[data-use]')].every((use) => use.textContent.endsWith('busy'))")
        shown.until("document.querySelectorAll('#requests tbody th').length === 3")
        shown.until("document.querySelectorAll('.plot .line').length === 3")
    names = [stage.name for stage in swarm.runtime.plan.stages]
    assert shown.page.locator(".node .name").all_text_contents() == names
    assert shown.page.locator(".node .about").first.text_content() == "layers 0–2"
    assert shown.page.locator("#workers tbody th").all_inner_texts()[:3] == names
    assert shown.page.locator("#links tbody tr").count() == 4
    for label in shown.page.locator(".label").all_text_contents():
        assert "s" in label.split("·")[0]
        assert label.endswith("/s now")
    assert "spare" in shown.text("#spares")
    assert shown.text("#plan-epoch") == "epoch 1"
    assert "Plan 1 runs" in shown.text("#log")
    assert shown.page.locator("#log li[data-kind='decided']").count() > 0
    assert shown.page.get_by_role("img", name="The ring: head; stage 0").count() == 1


def test_what_a_client_calls_itself_is_text(shown: Shown, swarm: Swarm) -> None:
    with _Load(swarm):
        shown.until(f"document.getElementById('requests').innerText.includes({MARKUP!r})")
    assert shown.page.locator("main img").count() == 0


@pytest.mark.parametrize("mode", ["chat", "text"])
def test_the_chat_box_gives_the_answer_of_the_model(mode: str, shown: Shown, swarm: Swarm) -> None:
    page = shown.page
    page.get_by_text("Settings").click() if not page.locator("#most").is_visible() else None
    page.get_by_label("Most tokens").fill("24")
    page.get_by_label("Temperature").fill("0")
    page.get_by_role("button", name="Clear").click()
    page.locator(f"[name=mode][value={mode}]").check(force=True)
    page.get_by_label("Prompt").fill(PROMPT)
    page.get_by_label("Prompt").press("Enter")
    shown.until("/token.* · the first after/.test(document.querySelector('.theirs small')?.textContent)")
    asked: Any = [{"role": "user", "content": PROMPT}] if mode == "chat" else PROMPT
    answer = swarm.generate(asked, max_new_tokens=24)
    assert page.locator(".theirs > span:not(.hidden)").text_content() == answer.text
    assert page.locator(".theirs small").inner_text().startswith(f"{len(answer.token_ids)} tokens")
    assert page.get_by_role("log", name="Conversation").get_attribute("aria-busy") == "false"


def test_what_is_wrong_with_a_request_is_said(shown: Shown) -> None:
    page = shown.page
    page.get_by_label("Most tokens").fill("1000000")
    page.get_by_label("Prompt").fill(PROMPT)
    page.get_by_role("button", name="Send").click()
    page.get_by_role("alert").filter(has_text="max_").wait_for()
    page.get_by_role("button", name="Clear").click()
    shown.complaints = [one for one in shown.complaints if "400" not in one]  # the browser's own word for that answer


def test_a_killed_worker_and_its_recovery_are_seen_and_said(shown: Shown, swarm: Swarm) -> None:
    shown.page.evaluate(
        """() => {
            window.seen = [];
            const news = document.getElementById("news");
            new MutationObserver(() => window.seen.push(news.textContent)).observe(news, {childList: true});
        }"""
    )
    lost = swarm.runtime.plan.stages[1]
    with _Load(swarm):
        os.kill(swarm.runtime.worker_pids[lost.worker], signal.SIGKILL)
        shown.until("document.getElementById('plan-epoch').textContent === 'epoch 2'")
        shown.until("document.getElementById('state').dataset.state === 'up'")
        shown.until("document.getElementById('counts').textContent.includes('1 recovery')")
    assert shown.page.evaluate("window.seen") == [f"{lost.name} is lost, and stage 1 with it", "Plan 2 runs"]
    assert f"{lost.name} is lost, and stage 1 with it: " in shown.text("#log")
    taken = swarm.runtime.plan.stages[1].name
    assert taken != lost.name
    assert shown.page.locator(".node .name").nth(1).text_content() == taken


def test_another_plan_is_seen_to_take_over(shown: Shown, swarm: Swarm) -> None:
    two = [stage.worker for stage in swarm.runtime.plan.stages][:2]
    plan = swarm.run(swarm.runtime.replan(two, reason=f"to see {MARKUP}"))
    assert len(plan.stages) == 2
    shown.until("document.querySelectorAll('.node .name').length === 2")
    shown.until(f"document.getElementById('plan-epoch').textContent === 'epoch {plan.epoch}'")
    shown.until("document.getElementById('log').innerText.includes('has taken over')")
    assert f"to see {MARKUP}" in shown.text("#log")
    assert shown.page.locator("main img").count() == 0


def test_the_keyboard_reaches_everything_and_shows_where_it_is(shown: Shown) -> None:
    page = shown.page
    page.evaluate(
        f"""() => {{
            document.activeElement.blur();
            document.querySelectorAll({REACHABLE!r}).forEach((one, place) => one.dataset.place = place);
        }}"""
    )
    reached, outlines = set(), set()
    for _ in range(page.locator(REACHABLE).count() + 2):
        page.keyboard.press("Tab")
        place = page.evaluate("document.activeElement.dataset.place")
        reached.add(place)
        mark = "document.activeElement.type === 'radio' ? document.activeElement.nextElementSibling : document.activeElement"
        outlines.add(page.evaluate(f"getComputedStyle({mark}).outlineStyle") if place is not None else "solid")
    # A fold of the log that is drawn anew, a dialog that is closed, and of a group of radio buttons all but one are left out.
    missing = page.evaluate(
        """(reached) => [...document.querySelectorAll("[data-place]")]
            .filter((one) => one.checkVisibility({visibilityProperty: true}) && !reached.includes(one.dataset.place))
            .filter((one) => !(one.type === 'radio' && !one.checked))
            .map((one) => one.outerHTML)""",
        [one for one in reached if one],
    )
    assert missing == []
    assert "none" not in outlines


def test_colours_are_the_systems_until_somebody_chooses(shown: Shown, server: Served) -> None:
    page = shown.page
    ground = "getComputedStyle(document.documentElement).backgroundColor"
    light = page.evaluate(ground)
    page.emulate_media(color_scheme="dark")
    dark = page.evaluate(ground)
    assert light != dark
    button = page.get_by_role("button", name="Dark colours", pressed=True)
    button.focus()
    page.keyboard.press("Enter")
    assert page.evaluate(ground) == light
    page.goto(server.url)
    assert page.evaluate(ground) == light
    page.get_by_role("button", name="Dark colours", pressed=False).click()
    assert page.evaluate(ground) == dark
    page.evaluate("localStorage.clear()")
    page.emulate_media(color_scheme="light")


def test_a_narrow_window_shows_all_of_it_and_nothing_moves_where_nothing_should(
    chromium: Any, server: Served, swarm: Swarm
) -> None:
    context = chromium.new_context(viewport={"width": 400, "height": 850}, reduced_motion="reduce")
    narrow = Shown(context.new_page())
    narrow.page.goto(server.url)
    with _Load(swarm):
        narrow.until("document.querySelectorAll('.node .name').length === 2")
        narrow.until("Number(document.querySelector('[data-speed]').textContent) > 0")
        narrow.until("document.querySelectorAll('.plot .line').length === 3")
        assert narrow.page.evaluate("document.getAnimations().length") == 0
    assert narrow.page.evaluate("document.documentElement.scrollWidth") == 400
    assert narrow.complaints == []
    context.close()


def test_a_server_with_keys_asks_for_one_and_then_shows_all(chromium: Any, swarm: Swarm, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("ada correct-horse-battery\n")
    with served(swarm, clients=read_keys(str(tmp_path / "keys"))) as guarded:
        context = chromium.new_context()
        page = context.new_page()
        page.goto(guarded.url)
        key = page.get_by_role("dialog", name="This server asks for an API key").get_by_label("API key")
        key.fill("wrong-horse-battery")
        key.press("Enter")
        page.get_by_role("alert").filter(has_text="That key is not known here.").wait_for()
        key.fill("correct-horse-battery")
        key.press("Enter")
        page.locator("#state[data-state=up]").wait_for()
        assert not key.is_visible()
        page.reload()  # it is kept while the tab is open
        page.locator("#state[data-state=up]").wait_for()
        context.close()


def test_a_swarm_is_shown_while_it_waits_for_a_worker(chromium: Any) -> None:
    with awaiting() as server:
        one = Shown(chromium.new_context().new_page())
        one.page.goto(f"http://127.0.0.1:{server.port}")
        one.until("document.getElementById('state').textContent === 'waiting for 1 more'")
        assert one.text("#plan-why") == "There is no plan yet."
        worker = server.worker()
        one.until("document.getElementById('state').dataset.state === 'up'")
        assert one.page.locator("[data-node]").count() == 2
        assert [said for said in one.complaints if "503" not in said] == []
        one.page.context.close()
        server.process.terminate()
        assert (server.process.wait(60), worker.wait(60)) == (0, 0)


def test_nothing_was_complained_of_and_nobody_else_was_asked(shown: Shown, server: Served) -> None:
    assert shown.complaints == []
    assert shown.addresses == {f"127.0.0.1:{server.port}"}


def test_pictures_for_the_docs(chromium: Any, server: Served, swarm: Swarm, request: pytest.FixtureRequest) -> None:
    directory = request.config.getoption("--screenshots")
    if directory is None:
        pytest.skip("pictures are made with --screenshots DIR")
    swarm.run(swarm.runtime.replan(reason="for the picture"))
    context = chromium.new_context(viewport={"width": 1280, "height": 1000}, color_scheme="light")
    one = Shown(context.new_page())
    one.page.goto(server.url)
    with _Load(swarm):
        one.until("document.querySelector('.plot .line')?.getTotalLength() > 200", timeout_s=150)
        one.page.get_by_label("Prompt").fill("def read_lines(path):")
        one.page.get_by_label("Prompt").press("Enter")
        one.until("document.querySelector('.theirs > span:not(.hidden)')?.textContent.length > 200")
        one.page.evaluate("document.activeElement.blur()")
        for name, scheme, width, height in (
            ("light", "light", 1280, 1000),
            ("dark", "dark", 1280, 1000),
            ("narrow", "light", 400, 860),
        ):
            one.page.emulate_media(color_scheme=scheme)
            one.page.set_viewport_size({"width": width, "height": height})
            one.until("document.querySelector('#ring svg').clientWidth === document.getElementById('ring').clientWidth")
            one.page.evaluate("window.scrollTo(0, 0)")
            one.page.screenshot(path=Path(directory) / f"page-{name}.png")
    context.close()
