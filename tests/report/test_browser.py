"""The report in a real browser: fits the screen, decodes its pictures, follows the colour scheme."""

import json
import re
import shutil
import subprocess
from html import escape, unescape
from pathlib import Path

import pytest

from report.sample import sample_extras, sample_ledger
from vitesse.report.html import write_report

PROBE = """
<script>
addEventListener("load", () => {
  const shown = [...document.querySelectorAll("svg text.p-label, svg text.p-note")]
    .map(one => [one.textContent, one.getBoundingClientRect()]).filter(([, box]) => box.width);
  const overlapping = [];
  shown.forEach(([text, a], index) => shown.slice(index + 1).forEach(([other, b]) => {
    if (a.left < b.right && b.left < a.right && a.top + 3 < b.bottom && b.top + 3 < a.bottom)
      overlapping.push(text + " / " + other);
  }));
  const found = {
    width: innerWidth, page: document.documentElement.scrollWidth,
    images: [...document.images].map(one => [one.naturalWidth, one.naturalHeight, one.clientWidth]),
    labels: shown.length, overlapping,
    outside: shown.filter(([, box]) => box.left < 0 || box.right > innerWidth).map(([text]) => text),
    background: getComputedStyle(document.body).backgroundColor,
    scrolls: document.querySelector(".scroll").scrollWidth > document.querySelector(".scroll").clientWidth,
  };
  parent.document.title = "probe " + JSON.stringify(found);
});
</script>
"""


@pytest.fixture(scope="module")
def browser() -> str:
    found = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
    if found is None:
        pytest.skip("needs chromium or google-chrome, and none is installed")
    return found


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    return write_report(tmp_path_factory.mktemp("run"), sample_ledger(), sample_extras())


def _open(browser: str, page: Path, *flags: str) -> subprocess.CompletedProcess:
    command = [browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--dump-dom"]
    command += [
        f"--user-data-dir={page.parent / 'profile'}",
        "--enable-logging=stderr",
        *flags,
        page.as_uri(),
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=90, check=True)


def _probe(
    browser: str, report: Path, folder: Path, *, width: int, dark: bool = False, planted: str = ""
) -> dict:
    """Show a copy that may run the probe in a frame `width` pixels wide, and return what the browser saw.

    A window of headless Chromium is never narrower than 500 pixels; a frame is.
    """
    text = re.sub(r"<meta http-equiv=\"Content-Security-Policy\"[^>]*>", "", report.read_text())
    framed = escape(text.replace("</body>", f"{planted}{PROBE}</body>"))
    page = folder / "page.html"
    page.write_text(
        f'<!doctype html><title></title><iframe style="border:0;width:{width}px;height:1200px" srcdoc="{framed}">'
    )
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    seen = _open(browser, page, "--window-size=1400,1300", scheme).stdout
    title = re.search(r"<title>probe (.*?)</title>", seen, re.S)
    assert title, seen[:500]
    return json.loads(unescape(title[1]))


@pytest.mark.parametrize(("width", "dark"), [(400, True), (1060, True), (1280, False)])
def test_the_page_fits_shows_its_pictures_and_keeps_labels_apart(browser, report, tmp_path, width, dark):
    seen = _probe(browser, report, tmp_path, width=width, dark=dark)
    assert seen["width"] == width
    assert seen["page"] <= width
    assert seen["scrolls"] == (width == 400)
    assert len(seen["images"]) == 4
    assert all(natural == 480 and height == 360 and shown > 100 for natural, height, shown in seen["images"])
    assert seen["labels"] >= 7
    assert seen["overlapping"] == []
    assert seen["outside"] == []
    assert seen["background"] == ("rgb(21, 24, 27)" if dark else "rgb(251, 250, 248)")


def test_planted_faults_are_seen_by_the_probe(browser, report, tmp_path):
    planted = '<p style="width:2000px">wide</p><img src="data:image/png;base64,AAAA" alt="broken">'
    seen = _probe(browser, report, tmp_path, width=400, planted=planted)
    assert seen["page"] > 400
    assert seen["images"][-1][0] == 0


def _complaints(seen: subprocess.CompletedProcess) -> list[str]:
    return [line for line in seen.stderr.splitlines() if ":CONSOLE" in line]


def test_the_page_as_it_is_raises_no_error_in_the_console(browser, report):
    seen = _open(browser, report)
    assert "as fast, still right" in seen.stdout
    assert _complaints(seen) == []


def test_a_request_to_the_outside_is_blocked_and_reported(browser, report, tmp_path):
    page = tmp_path / "page.html"
    page.write_text(
        report.read_text().replace("</body>", '<img src="https://example.com/a.png" alt=""></body>')
    )
    complaints = _complaints(_open(browser, page))
    assert any("Content Security Policy" in line for line in complaints)
