"""A headless Chromium, where there is one: `make browser` installs it, NESTED_BROWSER=/path/to/chrome names another."""

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "report"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every test of this folder is one of the browser's."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.browser)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: make browser")
    chosen = os.environ.get("NESTED_BROWSER") or None
    with playwright.sync_playwright() as driver:
        try:
            found = driver.chromium.launch(executable_path=chosen, args=["--no-sandbox"])
        except playwright.Error as error:
            if chosen:
                raise  # whoever names a browser wants to know why it does not start
            pytest.skip(f"no Chromium (make browser): {error.message.strip().splitlines()[0]}")
        yield found
        found.close()


@dataclass
class Opened:
    """A page in the browser, and what went wrong in it."""

    page: Any
    errors: list[str] = field(default_factory=list)

    def rows(self, heading: str) -> list[list[str]]:
        """The visible rows of the first table with this heading."""
        return self.page.evaluate(
            """heading => {
                const table = [...document.querySelectorAll("table")].find(
                    t => [...t.tHead.rows[0].cells].some(c => c.textContent.trim() === heading));
                return [...table.tBodies[0].rows].filter(r => r.checkVisibility())
                    .map(r => [...r.cells].map(c => c.textContent.trim()));
            }""",
            heading,
        )

    def undrawn(self) -> list[str]:
        """What every figure that shows nothing is called: no size, no marks, or an image that cannot be decoded."""
        return self.page.evaluate(
            """async () => {
                for (const d of document.querySelectorAll("details")) d.open = true;
                const bad = [];
                for (const svg of document.querySelectorAll("figure svg")) {
                    const box = svg.getBoundingClientRect();
                    let good = box.width > 50 && box.height > 50 && svg.querySelectorAll("path, image").length > 3;
                    for (const image of svg.querySelectorAll("image")) {
                        const copy = new Image();
                        copy.src = image.getAttribute("href") ?? image.getAttribute("xlink:href");
                        await copy.decode().catch(() => {});
                        good &&= copy.naturalWidth > 0;
                    }
                    if (!good) bad.push(svg.getAttribute("aria-label"));
                }
                return bad;
            }"""
        )


@pytest.fixture
def opened(browser: Any) -> Iterator[Callable[[Path], Opened]]:
    """Open a file; in the end the test fails when the page has written an error to the console, or loaded a thing."""
    pages = []

    def open_page(path: Path) -> Opened:
        found = Opened(browser.new_page(viewport={"width": 1280, "height": 900}))
        pages.append(found)
        found.page.on("console", lambda m: found.errors.append(m.text) if m.type in ("error", "warning") else None)
        found.page.on("pageerror", lambda error: found.errors.append(str(error)))
        found.page.on("dialog", lambda dialog: (found.errors.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        asked = lambda r: None if r.url.startswith(("file:", "data:")) else found.errors.append(r.url)  # noqa: E731
        found.page.on("request", asked)
        found.page.goto(path.resolve().as_uri())
        return found

    yield open_page
    errors = [error for found in pages for error in found.errors]
    for found in pages:
        found.page.close()
    assert not errors
