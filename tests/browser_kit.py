"""A browser that shows the page of a swarm, and what it had to complain of."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def find_browser() -> str:
    """Skips the test where there is none, or nothing to drive it with."""
    pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("no chromium on this machine; on Debian or Ubuntu: apt-get install chromium")
    return found


UNTIL = """() => new Promise((resolve, reject) => {
    const began = performance.now();
    const look = () => {
        if (%s) resolve();
        else if (performance.now() - began > %d) reject(new Error(`it never came to ${String.raw`%s`}`));
        else setTimeout(look, 20);
    };
    look();
})"""


class Shown:
    """A page that is open. Its ``complaints`` and the ``addresses`` that it asked are kept."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.complaints: list[str] = []
        self.addresses: set[str] = set()
        page.on(
            "console", lambda said: said.type in ("error", "warning") and self.complaints.append(f"{said.text} {said.location}")
        )
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda request: self.addresses.add(request.url.split("/")[2]))

    def until(self, condition: str, timeout_s: float = 60) -> None:
        """Wait until this JavaScript is true. Playwright's own way evaluates text in the page, which its policy forbids."""
        self.page.evaluate(UNTIL % (condition, timeout_s * 1e3, condition))

    def text(self, selector: str) -> str:
        return str(self.page.locator(selector).inner_text())


@contextmanager
def browser() -> Iterator[Any]:
    """Without a sandbox: the only pages it meets are ours, and root may not have one."""
    path = find_browser()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        try:
            yield running
        finally:
            running.close()
