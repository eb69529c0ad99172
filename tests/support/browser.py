"""A real browser, and the screenshots of the documentation."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

_OPTIONS = (
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@contextmanager
def open_page(chromium: str, url: str | None = None, height: int = 760) -> Iterator[Page]:
    """An empty page, 1400 pixels wide, of the browser at the path `chromium`.

    `url`: what its addresses are relative to.
    """
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=list(_OPTIONS))
        page = browser.new_page(base_url=url, viewport={"width": 1400, "height": height})
        page.set_default_timeout(30_000)
        yield page
        browser.close()


def shoot(page: Page, name: str) -> None:
    """Renew a screenshot, if BLACKSMITH_SCREENSHOTS names the folder of the documentation's."""
    if folder := os.environ.get("BLACKSMITH_SCREENSHOTS"):
        page.wait_for_load_state("networkidle")
        page.screenshot(path=Path(folder) / f"{name}.png")
