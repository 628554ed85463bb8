"""The dashboard in headless Chromium against canned answers: what it shows and sends, and that it keeps its policy."""

import io
import json
import re
import shutil
import subprocess
from html import unescape

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("prometheus_client", reason="needs prometheus-client")
pytest.importorskip("psutil", reason="needs psutil")
pytest.importorskip("starlette", reason="needs starlette")

from serve.status_server import FACTS, PAGE, Scene, released, serving
from vitesse.serve.metrics import Load

# A frame as wide as a phone, that waits until a condition of the page holds, acts, waits again and tells what it sees.
FRAME = """<!doctype html><title></title><body>
<iframe id="f" style="border:0;width:%(width)dpx;height:1800px"></iframe>
<script>
const sleep = ms => new Promise(done => setTimeout(done, ms));
const frame = document.getElementById("f");
frame.onload = async () => {
  const page = frame.contentDocument, text = id => page.getElementById(id).textContent;
  const until = async holds => { for (let tries = 0; tries < 400 && !holds(); tries++) await sleep(25); };
  const give = async path => {
    const blob = await (await fetch(path)).blob(), transfer = new DataTransfer(), input = page.getElementById("file");
    transfer.items.add(new File([blob], "picture.png", { type: "image/png" }));
    input.files = transfer.files;
    input.dispatchEvent(new Event("change"));
  };
  let seen = null, failed = "";
  try { seen = await (async () => { %(script)s })(); } catch (error) { failed = String(error.stack); }
  frame.onload = null;
  frame.src = "about:blank";  // ends the polling
  document.title = "probe " + JSON.stringify({ seen, failed });
};
frame.src = "/framed/";
</script>"""
TILES = """
await until(() => text("state").startsWith("ready") || text("state").startsWith("not"));
const tiles = Object.fromEntries([...page.querySelectorAll(".tile")].map(one => [one.id.slice(5), {
  value: one.querySelector(".value").textContent, note: one.querySelector(".note").textContent,
  lines: one.querySelectorAll("path.line").length }]));
const root = page.documentElement;
return { tiles, state: text("state"), name: text("name"), facts: text("facts"), uptime: text("uptime"),
  width: root.clientWidth, page: root.scrollWidth, planted: page.querySelectorAll("b, img").length,
  background: frame.contentWindow.getComputedStyle(page.body).backgroundColor,
  alerts: [...page.querySelectorAll("#alerts li")].map(one => one.textContent), answering: text("answering"),
  releases: [...page.querySelectorAll("#releases tbody tr")].map(one => [...one.cells].map(cell => cell.textContent)),
  events: [...page.querySelectorAll("#events li")].map(one => one.textContent) };
"""


@pytest.fixture(scope="module")
def browser():
    found = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
    if found is None:
        pytest.skip("needs chromium or google-chrome, and none is installed")
    return found


def _open(browser, folder, url, *flags):
    command = [browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--dump-dom"]
    command += [
        f"--user-data-dir={folder / 'profile'}",
        "--enable-logging=stderr",
        "--virtual-time-budget=12000",
    ]
    done = subprocess.run([*command, *flags, url], capture_output=True, text=True, timeout=90, check=True)
    said = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    # What the probe's own script is told is not the page's doing.
    return done.stdout, [line for line in said if not re.search(r"/frame \(\d+\)$", line)]


def _probe(browser, folder, script, status, answer=None, *, width=1200, dark=False, files=None, **options):
    """Run a script beside the page; returns what it returned, what came by POST, and the console's complaints."""
    frame = (FRAME % {"width": width, "script": script}).encode()
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    with serving(status, answer, files={"/frame": ("text/html", frame), **(files or {})}, **options) as (
        url,
        posted,
    ):
        dom, complaints = _open(browser, folder, f"{url}/frame", "--window-size=1400,1900", scheme)
    title = re.search(r"<title>probe (.*?)</title>", dom, re.S)
    assert title, dom[:500]
    found = json.loads(unescape(title[1]))
    assert not found["failed"], found["failed"]
    return found["seen"], posted, complaints


def _picture(width=64, height=48):
    stream = io.BytesIO()
    Image.fromarray(np.full((height, width, 3), 90, np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def _busy(**options):
    scene = Scene(**options)
    for _ in range(20):
        scene.second(requests=40, latency_s=0.02)
    return scene


def test_the_page_shows_the_server_s_numbers_and_complains_of_nothing(browser, tmp_path):
    seen, _, complaints = _probe(browser, tmp_path, TILES, _busy().status.document)
    assert complaints == []
    assert (seen["width"], seen["page"], seen["background"]) == (1200, 1200, "rgb(251, 250, 248)")
    assert seen["state"] == "ready"
    assert seen["name"] == "detr_fashion"
    assert seen["facts"] == (
        "1.82× as fast as the original · COCO AP 0.612 (−0.10 points) · step fuse · onnxruntime · dc9bd489b28a"
    )
    tiles = seen["tiles"]
    assert set(tiles) == {"p50", "p99", "rate", "queue", "batch", "cpu", "memory"}
    assert float(tiles["p50"]["value"].removesuffix("ms")) == pytest.approx(30, abs=1.5)
    assert tiles["rate"]["value"] == "40req/s"
    assert tiles["queue"]["value"] == "3of 32"
    assert tiles["batch"] == {"value": "4items", "note": "2 of 2 workers busy", "lines": 1}
    assert tiles["cpu"]["value"] == "1.62cores"
    assert tiles["memory"]["value"] == "212MB"
    assert all(tile["lines"] == 1 for tile in tiles.values())
    assert seen["uptime"] == "up 20 s"
    assert seen["releases"][1] == ["int8-0a1b2c3d4e5f", "canary 10 % shadow", "closed"]
    assert seen["answering"].startswith("The live release answers")
    assert seen["alerts"] == []


def test_it_fits_a_phone_and_follows_the_dark_scheme(browser, tmp_path):
    long_words = {**FACTS, "name": "a_model_with_a_name_that_goes_on_and_on_" * 3}
    document = {
        **_busy(state=released("12 of 50 answers held NaN " * 6)).status.document(),
        "model": long_words,
    }
    seen, _, complaints = _probe(browser, tmp_path, TILES, lambda: document, width=400, dark=True)
    assert (seen["width"], seen["page"]) == (400, 400)
    assert seen["background"] == "rgb(21, 24, 27)"
    assert complaints == []


def test_alerts_a_rollback_and_why_it_is_not_ready_are_shown(browser, tmp_path):
    scene = _busy(
        state=released("12 of 50 answers held NaN"), load=Load(31, 32, 2, 2), ready=(False, "draining")
    )
    seen, _, _ = _probe(browser, tmp_path, TILES, scene.status.document)
    assert seen["state"] == "not ready: draining"
    assert seen["answering"].startswith("The reference answers 12 of 50 answers held NaN")
    assert seen["releases"][0][2] == "open"
    assert "breaker opened" in seen["events"][0]
    assert [text.split(":")[0] for text in seen["alerts"]] == [
        "The optimised model was taken out of service",
        "More comes than can be served",
    ]


def test_a_gpu_s_figures_have_tiles_and_a_silent_gpu_says_why(browser, tmp_path):
    scene = Scene()
    gpu = {
        "gpu_percent": 77.0,
        "gpu_memory_mb": 5200.0,
        "gpu_memory_total_mb": 81_600.0,
        "gpu_memory_own_mb": 2100.0,
    }
    scene.second(**gpu, temperature_c=61.0, power_w=312.0)
    tiles = _probe(browser, tmp_path, TILES, scene.status.document)[0]["tiles"]
    assert tiles["gpu"]["value"] == "77%" and tiles["gpu"]["note"] == "61 °C, 312 W"
    assert tiles["gpu-memory"]["value"] == "5.20of 81.6 GB"
    assert tiles["gpu-memory"]["note"] == "2.10 GB by this server"
    document = Scene().status.document()
    document["machine"]["missing"] = {"GPU": "the NVIDIA driver cannot be asked"}
    silent = _probe(browser, tmp_path, TILES, lambda: document)[0]["tiles"]["gpu"]
    assert (silent["value"], silent["note"]) == ("–%", "the NVIDIA driver cannot be asked")


def test_texts_from_the_server_stay_texts(browser, tmp_path):
    evil = "<b>x</b><img src=x onerror=alert(1)>"
    document = {**_busy(state=released(evil)).status.document(), "model": {**FACTS, "name": evil}}
    seen, _, complaints = _probe(browser, tmp_path, TILES, lambda: document)
    assert seen["name"] == evil
    assert evil in seen["answering"]
    assert seen["planted"] == 0
    assert complaints == []


def test_a_lost_connection_is_said_and_comes_back(browser, tmp_path):
    document, asked = _busy().status.document(), []

    def status():
        asked.append(1)
        return None if len(asked) in (2, 3) else document

    script = """
    await until(() => text("state") === "ready");
    await until(() => text("state").startsWith("connection lost"));
    const lost = text("state"), stale = page.body.classList.contains("stale");
    await until(() => text("state") === "ready");
    return { lost, stale, back: text("state"), still: page.body.classList.contains("stale") };"""
    seen, _, _ = _probe(browser, tmp_path, script, status)
    assert seen["lost"].startswith("connection lost, figures are ")
    assert (seen["stale"], seen["back"], seen["still"]) == (True, "ready", False)


SEND = """
await until(() => text("state") === "ready");
await give("/picture.png");
await until(() => text("outcome") && !text("outcome").startsWith("Sending"));
const canvas = page.getElementById("picture");
const rows = () => [...page.querySelectorAll("#found tbody tr")].map(one => one.textContent);
const at = (x, y) => [...canvas.getContext("2d").getImageData(x, y, 1, 1).data];
"""


def test_a_dropped_image_is_sent_and_its_boxes_are_drawn_where_they_are(browser, tmp_path):
    found = [
        {"label": "bag", "class": 8, "score": 0.97, "box_xyxy": [30, 30, 60, 44]},
        {"label": "shirt", "class": 6, "score": 0.32, "box_xyxy": [1, 20, 12, 40]},
    ]
    answer = (200, {"detections": found, "served_by": "live", "timings_ms": {"infer": 12.34}})
    script = (
        SEND
        + """
    const before = { rows: rows(), inside: at(45, 37), edge: at(45, 44), elsewhere: at(2, 30),
      outcome: text("outcome"),
      size: [canvas.width, canvas.height], hidden: canvas.hidden };
    page.getElementById("threshold").value = "0.3";
    page.getElementById("threshold").dispatchEvent(new Event("input"));
    return { ...before, after: rows(), drawn: at(1, 30) };"""
    )
    picture = _picture()
    seen, posted, complaints = _probe(
        browser,
        tmp_path,
        script,
        _busy().status.document,
        answer,
        files={"/picture.png": ("image/png", picture)},
    )
    assert complaints == []
    assert posted == [("/framed/v1/detect?threshold=0.05", picture)]
    assert seen["rows"] == ["bag97.0 %"]
    assert seen["outcome"] == "1 found · by live · infer 12.3 ms"
    assert (seen["size"], seen["hidden"]) == ([64, 48], False)
    assert seen["inside"] == [90, 90, 90, 255] == seen["elsewhere"]
    assert seen["edge"] != [90, 90, 90, 255] != seen["drawn"]
    assert seen["after"] == ["bag97.0 %", "shirt32.0 %"]


def test_a_classifier_s_classes_are_shown_as_bars(browser, tmp_path):
    document = {**_busy().status.document(), "model": {**FACTS, "task": "classification"}}
    classes = [{"label": "bag", "class": 8, "score": 0.75}, {"label": "coat", "class": 4, "score": 0.25}]
    script = (
        SEND
        + """
    return { rows: rows(), cut: page.getElementById("cut").hidden,
      widths: [...page.querySelectorAll(".bar")].map(one => one.getBoundingClientRect().width) };"""
    )
    seen, posted, complaints = _probe(
        browser, tmp_path, script, lambda: document, (200, {"classes": classes, "served_by": "live"}),
        files={"/picture.png": ("image/png", _picture())},
    )  # fmt: skip
    assert complaints == []
    assert posted[0][0] == "/framed/v1/classify"
    assert seen["rows"] == ["bag75.0 %", "coat25.0 %"]
    assert seen["widths"][0] == pytest.approx(3 * seen["widths"][1], rel=0.05)
    assert seen["cut"]


def test_a_refused_image_shows_the_server_s_sentence(browser, tmp_path):
    answer = (415, {"error": "a GIF came; send JPEG, PNG, WEBP or BMP", "code": "unsupported"})
    files = {"/picture.png": ("image/png", _picture())}
    script = SEND + "return [text('outcome'), canvas.hidden];"
    seen, _, _ = _probe(browser, tmp_path, script, _busy().status.document, answer, files=files)
    assert seen == ["Not answered: a GIF came; send JPEG, PNG, WEBP or BMP (status 415)", True]


def test_a_server_with_keys_is_asked_with_one(browser, tmp_path):
    script = """
    await until(() => text("state") === "key needed");
    const asked = !page.getElementById("key").hidden, give = key => {
      page.getElementById("secret").value = key;
      page.getElementById("key").requestSubmit();
    };
    give("wrong");
    await until(() => text("state") === "key refused");
    const refused = text("state");
    give("s3cret");
    await until(() => text("state") === "ready");
    return { asked, refused, state: text("state"), hidden: page.getElementById("key").hidden,
      left: page.getElementById("secret").value };
    """
    seen, _, _ = _probe(browser, tmp_path, script, _busy().status.document, key="s3cret")
    assert seen == {"asked": True, "refused": "key refused", "state": "ready", "hidden": True, "left": ""}


def test_everything_can_be_reached_by_keyboard_and_has_a_name(browser, tmp_path):
    script = """
    await until(() => text("state") === "ready");
    const named = one => one.labels?.length || one.textContent.trim() || one.getAttribute("aria-label") || one.hidden;
    const nameless = [...page.querySelectorAll("input, button, canvas, table, ul[tabindex]")]
      .filter(one => !named(one)).map(one => one.id || one.tagName);
    const drop = page.getElementById("file");
    drop.focus();
    return { nameless, focused: page.activeElement.id,
      outline: frame.contentWindow.getComputedStyle(page.getElementById("drop")).outlineStyle };
    """
    seen, _, _ = _probe(browser, tmp_path, script, _busy().status.document)
    assert seen["nameless"] == []
    assert seen["focused"] == "file"


def test_the_page_alone_keeps_its_policy_and_a_planted_script_is_refused(browser, tmp_path):
    with serving(_busy().status.document) as (url, _):
        assert _open(browser, tmp_path, url)[1] == []
    planted = PAGE.replace(
        b"</body>", b"<script>document.title = 'planted'</script><p style='color:red'>x</p></body>"
    )
    with serving(_busy().status.document, page=planted) as (url, _):
        dom, complaints = _open(browser, tmp_path, url)
    assert "planted</title>" not in dom
    assert sum("Content Security Policy" in line for line in complaints) == 2


def test_the_page_asks_nobody_but_its_own_server():
    text = PAGE.decode()
    assert re.findall(r"https?://[^\"'\s]+", text) == ["http://www.w3.org/2000/svg"]
    assert not re.search(r"<(script|link|img|iframe)[^>]*(src|href)=\"(?!data:)", text)
    assert not re.search(
        r"innerHTML|insertAdjacentHTML|document\.write|\beval\(|\son[a-z]+=\"|\sstyle=\"", text
    )
    assert not re.search(r"localStorage|sessionStorage|document\.cookie", text)
