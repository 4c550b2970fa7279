"""The studio's pictures in docs/images, taken from a run with the system's Chromium.

fedvpa train configs/synthetic.yaml --out runs/first
python benchmarks/studio_pictures.py runs/first
python benchmarks/studio_pictures.py runs/hh4 --policy runs/aligned   # the one of Write
"""

from __future__ import annotations

import argparse
import contextlib
import io
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import uvicorn
from PIL import Image

from fedvpa.apps.studio import serving
from fedvpa.apps.studio.world import World

LARGEST, COLOURS = 150_000, 256
ASKED = "What should I cook for dinner tonight?"
DOCS = Path(__file__).parents[1] / "docs" / "images"


@contextlib.contextmanager
def running(world: World, run: str = "run", token: str | None = None) -> Iterator[str]:
    """A studio on a free port of this machine, for as long as the block runs; yields its address."""
    with serving.bound("127.0.0.1", 0) as listening:
        config = uvicorn.Config(
            serving.application(world, run, token), log_level="warning", access_log=False, timeout_graceful_shutdown=1
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        while not server.started and thread.is_alive():
            time.sleep(0.05)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
        server.should_exit = True
        thread.join(10)


def chromium() -> str | None:
    """The system's browser, None where there is none."""
    return next(
        (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
    )


def teach(page: Any, answers: int) -> None:
    """Answers as somebody would who likes the first answer."""
    for n in range(answers):
        page.get_by_role("heading", name=f"Question {n + 1}", exact=True).wait_for()
        page.keyboard.press("1")
    page.get_by_role("heading", name=f"Question {answers + 1}", exact=True).wait_for()


def main() -> None:
    from playwright.sync_api import sync_playwright

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a folder of `fedvpa train`")
    parser.add_argument("--policy", type=Path, help="a folder of `fedvpa align`: takes the tab Write alone")
    parser.add_argument("--out", type=Path, default=DOCS)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    world = World.open(given.run, policy=given.policy)
    with running(world, given.run.resolve().name) as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        if world.policy is None:
            _teach_and_judge(browser, url, given.out)
        else:
            _write(browser, url, given.out)
        browser.close()


def _teach_and_judge(browser: Any, url: str, out: Path) -> None:
    for name, width, scheme in (("", 1200, "light"), ("-dark", 1200, "dark"), ("-phone", 390, "light")):
        page = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme).new_page()
        page.goto(url)
        teach(page, 5)
        _take(page, out / f"studio-teach{name}.png")
        page.get_by_role("tab", name="Judge").click()
        page.get_by_role("button", name="Compare").click()
        page.locator("table.verdicts").wait_for()
        _take(page, out / f"studio-judge{name}.png")


def _write(browser: Any, url: str, out: Path) -> None:
    page = browser.new_context(viewport={"width": 1200, "height": 900}).new_page()
    page.goto(url)
    page.get_by_role("tab", name="Write").click()
    page.locator("#write-prompt textarea").fill(ASKED)
    page.locator("#go-write").click()
    page.locator("section.answer[aria-label^='For ']").nth(1).wait_for(timeout=120_000)
    _take(page, out / "studio-write.png")


def _take(page: Any, path: Path) -> None:
    page.mouse.move(0, 0)
    page.wait_for_timeout(400)  # the focus ring's and the buttons' transitions
    taken = Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("RGB")
    taken.quantize(COLOURS).save(path, optimize=True)
    size = path.stat().st_size
    print(f"{path}: {size / 1000:.0f} kB")
    if size > LARGEST:
        raise SystemExit(f"{path}: larger than {LARGEST / 1000:.0f} kB")


if __name__ == "__main__":
    main()
