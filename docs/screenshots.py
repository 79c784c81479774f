"""The two pictures of MLflow in the README, taken again: `python docs/screenshots.py CHROMIUM [RUNS]`.

Trains what they show where RUNS holds no runs, serves it with `nested ui` and drives a headless Chromium by playwright.
CHROMIUM is the path of its executable.
"""

import re
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from urllib.parse import quote

from playwright.sync_api import Locator, Page, sync_playwright

DOCS, ADDRESS = Path(__file__).resolve().parent, "http://127.0.0.1:5055"
QUICK = (
    "stream=split_digits",
    "optim=sgd",
    "trainer.epochs=5",
    "trainer.progress=false",
    "tracking.timeout_seconds=90",
)
METHODS = ("naive", "ema", "associative_head", "replay")
WIDTH = 1200


def nested(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "nested", *arguments]


def train(runs: Path) -> None:
    """Four methods, three seeds each."""
    for method in METHODS:
        subprocess.run(nested("run", *QUICK, f"method={method}", "seeds=3", f"runs={runs}"), check=True)


def wait() -> None:
    for _ in range(120):
        try:
            urllib.request.urlopen(f"{ADDRESS}/health", timeout=2).close()
            return
        except OSError:
            time.sleep(1)
    raise TimeoutError(ADDRESS)


def button(page: Page, name: str) -> None:
    page.get_by_role("button", name=name, exact=True).first.click()
    page.wait_for_timeout(800)


def opened(page: Page, mode: str, where: str, height: int) -> None:
    """The runs of our experiment, with no panels beside them."""
    page.set_viewport_size({"width": WIDTH, "height": height})
    page.goto(f"{ADDRESS}/#/experiments/1/runs?compareRunsMode={mode}&searchFilter={quote(where)}")
    page.get_by_role("button", name="Group by").wait_for()
    page.wait_for_timeout(4000)
    for name in ("Close", "Toggle sidebar"):
        if page.get_by_role("button", name=name, exact=True).count():
            button(page, name)


def grouped(page: Page, *tags: str) -> None:
    for tag in tags:
        page.get_by_role("button", name="Group by").first.click()
        page.get_by_role("menuitemcheckbox", name=tag, exact=True).first.click()
        page.keyboard.press("Escape")
        page.wait_for_timeout(2000)


def with_columns(page: Page, *names: str) -> None:
    """Show or hide these columns."""
    button(page, "Columns")
    for name in names:
        page.get_by_placeholder("Search columns").fill(name)
        page.wait_for_timeout(800)
        title = page.locator(".du-bois-light-tree-title")
        title.filter(has_text=re.compile(f"^{re.escape(name)}$")).first.click()
    page.keyboard.press("Escape")
    page.mouse.click(600, 60)
    page.wait_for_timeout(1500)


def widened(page: Page, part: Locator, pixels: int, inside: float) -> None:
    """Drag what is `inside` pixels from the right edge of a part."""
    box = part.bounding_box()
    assert box, "it is not shown"
    x, y = box["x"] + box["width"] - inside, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + pixels, y, steps=8)
    page.mouse.up()
    page.wait_for_timeout(1500)


def run_list(page: Page) -> None:
    opened(page, "TABLE", "tags.stream = 'split_digits'", 580)
    grouped(page, "method")
    with_columns(page, "acc", "forgetting", "learning_acc", "Dataset", "Source", "Models")
    for k in range(1, len(METHODS)):
        page.locator(".ag-row", has_text="Group:").nth(k).locator("[role=button]").first.click()
        page.wait_for_timeout(500)
    widened(page, page.locator(".ag-header-cell", has_text="Run Name"), 100, 1)
    page.screenshot(path=DOCS / "mlflow-runs.png")


def curves(page: Page) -> None:
    opened(page, "CHART", "tags.method != 'ema' and tags.method != 'associative_head'", 700)
    grouped(page, "method")
    page.get_by_placeholder("Search metric charts").fill("test/(forgetting|learned)")
    page.wait_for_timeout(5000)
    for k in range(2):
        widened(page, page.get_by_test_id("draggable-card-resize-handle").nth(k), 130, 8)
    page.screenshot(path=DOCS / "mlflow-curves.png")


def main() -> None:
    chromium, runs = sys.argv[1], Path(sys.argv[2] if len(sys.argv) > 2 else "runs").resolve()
    if not list(runs.glob("*/result.json")):
        train(runs)
    serve = subprocess.Popen(nested("ui", "--runs", str(runs), "--port", ADDRESS.rpartition(":")[2]))
    try:
        wait()
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            for shoot in (run_list, curves):
                page = browser.new_page()  # the pages remember what was chosen last
                page.set_default_timeout(20_000)
                shoot(page)
    finally:
        serve.terminate()
        serve.wait()


if __name__ == "__main__":
    main()
