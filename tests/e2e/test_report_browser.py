"""The page of a real smoke reproduction in a real browser, without a window."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from helpers import ROOT
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

from kdx.cli.main import main

NAMES = ("chromium", "chromium-browser", "google-chrome")
SMOKE = ("budget=smoke", "seeds=1", "device.threads=1")
PHONE = {"width": 375, "height": 700}


def kdx(outputs: Path, *words: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "KDX_OUTPUTS": str(outputs)}
    result = subprocess.run(
        [sys.executable, "-m", "kdx", *words], env=environment, capture_output=True, text=True, timeout=600
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        missing = f"none of {', '.join(NAMES)} is installed (on Debian and Ubuntu: apt-get install chromium)"
        # There the page must be tested.
        assert os.environ.get("CI") != "true", missing
        pytest.skip(missing)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory, browser: Browser) -> Path:
    """The page of a table, made again on digits, of a sweep and of timings."""
    outputs = tmp_path_factory.mktemp("report") / "outputs"
    kdx(outputs, "reproduce", "vs/table2", *SMOKE)
    small = ("dataset=digits", "trainer.epochs=1", "teacher.trainer.epochs=1", "device.latency_seconds=0")
    kdx(outputs, "train", "-m", *small, "method=kd", "method.T=2,4", "device.threads=1")
    runs = sorted(map(str, outputs.glob("runs/digits/mlp-500-50/st-vbd/[!.]*")))
    with pytest.MonkeyPatch.context() as patch:
        # Two small batches instead of a minute of larger ones.
        patch.setattr("kdx.deploy.choice.SECONDS", 0.0)
        patch.setattr("kdx.bench.timing.BATCHES", (1, 3))
        # Where other programs take the cores nothing is written, nor what is too noisy.
        patch.setattr("kdx.bench.timing.cores_taken_by_others", lambda: lambda: None)
        patch.setattr("kdx.deploy.rounds.NOISY", float("inf"))
        assert main(["bench", *runs, "seconds=0.001"]) == 0
    return Path(kdx(outputs, "report").strip())


@dataclass
class Visit:
    """A page that is open, and everything that went wrong in it or was asked of the network."""

    page: Page
    complaints: list[str] = field(default_factory=list)


def visit(context: BrowserContext, file: Path, anchor: str = "") -> Visit:
    opened = Visit(context.new_page())
    opened.page.set_default_timeout(20_000)
    opened.page.on("console", lambda message: opened.complaints.append(message.text))
    opened.page.on("pageerror", lambda error: opened.complaints.append(str(error)))
    opened.page.on(
        "request",
        lambda request: None if request.url.startswith(("file:", "data:")) else opened.complaints.append(request.url),
    )
    opened.page.goto(f"file://{file}{anchor}")
    return opened


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    context = browser.new_context(permissions=["clipboard-read", "clipboard-write"])
    yield context
    context.close()


@pytest.fixture
def page(context: BrowserContext, page_file: Path) -> Iterator[Page]:
    opened = visit(context, page_file)
    yield opened.page
    assert opened.complaints == []


TABLE = "#paper-vs-table2-smoke table.sortable >> nth=0"


def first_column(page: Page) -> list[str]:
    return page.locator(f"{TABLE} >> tbody th").all_inner_texts()


def values(page: Page, column: int) -> list[float | None]:
    cells = page.locator(f"{TABLE} >> tbody tr td:nth-child({column})")
    texts = [cells.nth(number).get_attribute("data-value") for number in range(cells.count())]
    return [float(text) if text else None for text in texts]


def test_a_column_is_sorted_with_the_mouse_and_the_keyboard(page: Page):
    before = first_column(page)
    # Memory compression, which the teacher does not have.
    head = page.locator(f"{TABLE} >> thead th >> nth=5")
    assert head.get_attribute("aria-sort") == "none"
    unsorted = values(page, 6)
    present = sorted(value for value in unsorted if value is not None)
    assert len(present) == len(unsorted) - 1
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    assert values(page, 6) == [*present, None]
    head.locator("button").press("Enter")
    assert head.get_attribute("aria-sort") == "descending"
    assert values(page, 6) == [*reversed(present), None]
    other = page.locator(f"{TABLE} >> thead th >> nth=0")
    other.locator("button").press(" ")
    assert (head.get_attribute("aria-sort"), other.get_attribute("aria-sort")) == ("none", "ascending")
    assert first_column(page) == sorted(before, key=str.lower)
    other.locator("button").click()
    other.locator("button").click()
    assert other.get_attribute("aria-sort") == "none"
    assert first_column(page) == before


def test_a_number_leads_to_its_run_and_back(page: Page):
    row = page.locator(f"{TABLE} >> tbody tr", has_text="S1-ST-VBD")
    link = row.locator("td a").first
    shown = link.inner_text()
    link.click()
    dialog = page.locator("dialog")
    dialog.wait_for(state="visible")
    assert "st-vbd on digits" in dialog.inner_text()
    error = dialog.locator(".metrics div", has_text="test_error_percent").first.locator("dd").inner_text()
    assert f"{float(error):.2f}" == shown
    assert "Inference, as kdx bench measured it" in dialog.inner_text()
    page.keyboard.press("Escape")
    dialog.wait_for(state="hidden")
    assert "#" not in page.url
    # The same number again, and another way back.
    link.click()
    dialog.wait_for(state="visible")
    page.go_back()
    dialog.wait_for(state="hidden")


def test_a_run_has_an_address_of_its_own(context: BrowserContext, page: Page, page_file: Path):
    address = page.locator(f"{TABLE} >> tbody td a").first.get_attribute("href")
    assert address is not None
    assert address.startswith("#run-")
    opened = visit(context, page_file, address)
    opened.page.locator("dialog").wait_for(state="visible")
    assert address.removeprefix("#run-") in opened.page.locator("dialog").inner_text()
    assert opened.complaints == []


def test_command_and_configuration_are_copied(page: Page):
    page.locator(f"{TABLE} >> tbody tr", has_text="S1-KD-SVD").locator("td a").first.click()
    dialog = page.locator("dialog")
    for title, beginning in (("Command", "kdx train dataset=digits "), ("Configuration", "dataset:\n")):
        part = dialog.locator(".copyable", has_text=title)
        part.locator("button.copy").click()
        part.get_by_text("Copied").wait_for()
        copied = page.evaluate("navigator.clipboard.readText()")
        assert copied.startswith(beginning)
        assert copied == part.locator("pre").text_content()


def test_the_runs_are_filtered(page: Page):
    rows = page.locator("#all-runs tbody tr")
    everything = rows.count()
    page.locator("input.filter").fill("ST-svd digits")
    visible = [row for row in rows.all() if row.is_visible()]
    assert 0 < len(visible) < everything
    assert all("st-svd" in row.inner_text() for row in visible)
    page.locator("input.filter").fill("")
    assert all(row.is_visible() for row in rows.all())


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_in_light_and_dark(browser: Browser, page_file: Path, scheme: str):
    context = browser.new_context(viewport=PHONE, color_scheme=scheme)  # type: ignore[arg-type]
    opened = visit(context, page_file)
    page = opened.page
    lightness = "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).reduce((a, b) => a + +b, 0)"
    assert (page.evaluate(lightness) > 382) == (scheme == "light")
    # The page itself never moves sideways; its tables do, in their own boxes.
    for details in page.locator("main details").all():
        details.evaluate("one => one.open = true")
    width = "document.documentElement.scrollWidth"
    assert page.evaluate(width) == PHONE["width"]
    assert page.locator(".box").first.evaluate("box => box.scrollWidth > box.clientWidth")
    page.locator(f"{TABLE} >> tbody td a").first.click()
    page.locator("dialog").wait_for(state="visible")
    assert page.locator("dialog").evaluate("box => box.scrollWidth <= box.clientWidth")
    assert page.evaluate(width) == PHONE["width"]
    page.keyboard.press("Escape")
    page.locator("button.theme").click()
    assert (page.evaluate(lightness) > 382) == (scheme == "dark")
    assert opened.complaints == []
    context.close()


def test_without_javascript_every_link_still_leads_somewhere(browser: Browser, page_file: Path):
    context = browser.new_context(java_script_enabled=False)
    opened = visit(context, page_file)
    link = opened.page.locator(f"{TABLE} >> tbody td a").first
    address = link.get_attribute("href")
    link.click()
    opened.page.locator(f"article{address}").wait_for(state="visible")
    context.close()


def test_on_paper_nothing_is_cut_off(browser: Browser, page_file: Path):
    context = browser.new_context()
    page = visit(context, page_file).page
    page.emulate_media(media="print")
    assert page.locator("nav").is_hidden()
    assert page.locator(".box").first.evaluate("box => getComputedStyle(box).overflowX") == "visible"
    assert page.pdf(format="A4").startswith(b"%PDF")
    context.close()
