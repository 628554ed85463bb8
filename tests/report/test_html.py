import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from report.sample import FUSE, SOURCE, UNKNOWN, sample_extras, sample_ledger
from vitesse.errors import RunFolderError, StorageError
from vitesse.ledger import Ledger, Row, Verdict, load_ledger
from vitesse.report import html
from vitesse.report.extras import Picture, ReportExtras, load_extras, save_extras
from vitesse.report.figures import columns, row_texts
from vitesse.report.html import render_html, write_report
from vitesse.report.markdown import render_markdown

LOADING = ("src", "href", "data", "poster", "srcset", "action", "xlink:href", "background")


class _Page(HTMLParser):
    """Text, tags and everything a browser would fetch."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        if data.strip():
            self.texts.append(data.strip())

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def loads(self) -> list[str]:
        """What is fetched without a click: any such attribute that is neither inline nor a plain link."""
        return [
            f"{tag} {name}={value}"
            for tag, attributes in self.tags
            for name, value in attributes.items()
            if name in LOADING
            and not (tag == "a" and name == "href")
            and not (value or "").startswith("data:")
        ]


def _page(ledger: Ledger | None = None, extras: ReportExtras | None = None) -> str:
    return render_html(ledger or sample_ledger(), extras or sample_extras())


def test_the_report_and_its_markdown_are_written_into_the_run(tmp_path):
    path = write_report(tmp_path, sample_ledger(), sample_extras())
    assert path == tmp_path / "report.html"
    assert path.read_text() == _page()
    assert (tmp_path / "report.md").read_text() == render_markdown(sample_ledger(), sample_extras())
    assert sorted(one.name for one in tmp_path.iterdir()) == ["report.html", "report.md"]


def test_the_report_can_be_written_again_from_the_run_folder_alone(tmp_path):
    sample_ledger().save(tmp_path / "ledger.json")
    save_extras(tmp_path, sample_extras())
    first = write_report(tmp_path, sample_ledger(), sample_extras()).read_bytes()
    again = write_report(tmp_path, load_ledger(tmp_path / "ledger.json"), load_extras(tmp_path))
    assert again.read_bytes() == first


def test_a_damaged_picture_leaves_the_earlier_report(tmp_path):
    path = write_report(tmp_path, sample_ledger(), sample_extras())
    before = path.read_bytes()
    with pytest.raises(RunFolderError, match="cannot be decoded"):
        write_report(tmp_path, sample_ledger(), ReportExtras(pictures=(Picture("x", b"junk", b"junk"),)))
    assert path.read_bytes() == before


def test_a_run_that_cannot_be_written_is_a_storage_error(tmp_path):
    (tmp_path / "run").write_text("a file")
    with pytest.raises(StorageError):
        write_report(tmp_path / "run", sample_ledger(), sample_extras())


def test_every_row_is_there_with_its_figures_and_its_reason():
    texts = _Page(_page()).texts
    for row in row_texts(sample_ledger()):
        assert row.stage in texts
        assert row.reason in texts
        for column in columns(sample_ledger()):
            assert not row.cells[column.key].text or row.cells[column.key].text in texts


def test_figures_in_html_and_markdown_are_the_same():
    body = _page().split('<table class="ledger">')[1].split("</table>")[0]
    shown = [
        re.sub(r"<[^>]*>", " ", line.split("</tr>")[0]).split()
        for line in body.split('<tr class="figures">')[1:]
    ]
    table = render_markdown(sample_ledger(), sample_extras()).split("## Ledger\n\n")[1].split("\n\n")[0]
    assert len(shown) == len(table.splitlines()) - 2
    for line, words in zip(table.splitlines()[2:], shown, strict=True):
        cells = [cell.strip("* ") for cell in line.strip("|").split("|")]
        figures = [cell for cell in cells[2:] if cell]
        assert [word for word in words if word in figures] == figures


def test_exactly_the_chosen_row_is_highlighted():
    page = _page()
    assert page.count(' chosen">') == 1
    assert page.count('<span class="tag">chosen</span>') == 1
    assert re.search(r'<tbody class="v-pass chosen">.*?int8-backbone', page, re.S)
    assert ' chosen">' not in _page(replace(sample_ledger(), chosen=None))


def test_null_figures_are_said_to_be_not_measured_with_the_reason():
    page = _Page(_page())
    titles = [attributes["title"] for attributes in page.of("abbr")]
    assert titles.count("not measured: not measured on a model that is wrong") == 6
    assert "parity not measured: NaN has no distance" in page.texts
    assert "fp16: parity" in page.texts
    assert "energy" in page.texts


def test_a_hostile_model_name_is_shown_as_text():
    page = _page(sample_ledger(source="models/<script>alert(1)<\\script>"))
    assert "<script" not in page
    assert _Page(page).of("script") == []
    hostile = sample_ledger(source="<script>alert(1)")
    assert "<script>alert(1)" in _Page(_page(hostile)).texts


hostile_text = st.text(st.sampled_from("<>&\"'`{}%/=ab éλ"), min_size=1, max_size=30).map(
    lambda text: f"x{text}x"
)


@given(hostile_text, hostile_text)
@settings(max_examples=25, deadline=None)
def test_any_text_of_the_ledger_reaches_the_page_unchanged_and_adds_no_tag(stage, reason):
    row = Row(stage, Verdict.UNKNOWN, reason, unmeasured={"gain": reason})
    page = _Page(render_html(Ledger("m.onnx", "cpu", (SOURCE, row), chosen=0), ReportExtras()))
    row = Row("fuse", Verdict.UNKNOWN, "because", unmeasured={"gain": "because"})
    harmless = _Page(render_html(Ledger("m.onnx", "cpu", (SOURCE, row), chosen=0), ReportExtras()))
    assert reason in page.texts
    assert stage in page.texts
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in harmless.tags]


def test_nothing_is_loaded_from_outside_and_no_script_runs():
    page = _page()
    assert _Page(page).loads() == []
    assert _Page(page).of("script") == []
    assert not re.search(r"url\(|@import|http-equiv=.refresh", page)
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in page


@pytest.mark.parametrize(
    "planted",
    ['<img src="https://x/y.png">', '<link rel=stylesheet href="https://x/y.css">', '<iframe src="y.html">'],
)
def test_a_planted_load_is_noticed(planted):
    assert len(_Page(_page().replace("</main>", planted + "</main>")).loads()) == 1


def test_pictures_are_side_by_side_with_an_alternative_text():
    images = _Page(_page()).of("img")
    assert [image["alt"] for image in images[:2]] == [
        "val/000012.png with the results of the original drawn on it",
        "val/000012.png with the results of int8-backbone drawn on it",
    ]
    assert all(image["src"].startswith("data:image/png;base64,") for image in images)
    assert all(int(image["width"]) == 480 for image in images)


def test_every_table_header_has_a_scope():
    headers = _Page(_page()).of("th")
    assert {header.get("scope") for header in headers} == {"col", "row", "rowgroup"}


def test_operators_are_sorted_summed_and_the_small_ones_joined():
    texts = _Page(_page()).texts
    assert texts.index("MatMul") < texts.index("Conv") < texts.index("MultiHeadAttention")
    assert "other (7 operators)" in texts
    total = texts[texts.index("all operators") :][:3]
    assert total == ["all operators", "18.46", "10.87"]
    widths = [float(width) for width in re.findall(r'class="bar [a-z]+" style="width:([\d.]+)%"', _page())]
    assert max(widths) == 100.0
    assert all(0 <= width <= 100 for width in widths)


def test_parts_of_the_model_stand_in_the_order_of_an_images_way_with_bars_and_a_sum():
    page = _page()
    texts = _Page(page).texts
    parts = ["read the image", "backbone", "encoder", "decoder", "read the outputs"]
    assert sorted(parts, key=texts.index) == parts
    total = texts[texts.index("image to result") :][:3]
    assert total == ["image to result", "24.00", "14.92"]
    bars = page.split(">decoder</th>")[1].split("</tr>")[0]
    assert re.findall(r"width:([\d.]+)%", bars) == ["100.00", "69.27"]


def test_without_a_profile_by_module_the_operators_stand_alone():
    page = _page(extras=replace(sample_extras(), modules=(), modules_note=""))
    assert "step or part" not in page
    assert page.count('<table class="operators">') == 1
    assert _page().count('<table class="operators">') == 2


def test_empty_sections_say_why():
    texts = _Page(_page(extras=ReportExtras(operators_note="Not profiled: OpenVINO gives no times."))).texts
    assert "Not profiled: OpenVINO gives no times." in texts
    assert "No pictures were drawn; no reason was recorded." in texts


def test_the_command_the_environment_and_the_method_are_there():
    text = " ".join(_Page(_page()).texts)
    assert sample_ledger().command in text
    assert "vitesse 0.1.0, onnx 1.23.2, onnxruntime 1.31.1" in text
    assert "docs/benchmarking.md" in text
    assert "interleaved, A B A B" in text


@pytest.mark.parametrize(
    ("ledger", "title"),
    [
        (Ledger("m.onnx", "cpu"), "Unfinished: nothing was chosen yet"),
        (Ledger("m.onnx", "cpu", (SOURCE,)), "Unfinished: nothing was chosen yet"),
        (Ledger("m.onnx", "cpu", (SOURCE, UNKNOWN), chosen=1), "Not verified: don't deploy this yet"),
        (Ledger("m.onnx", "cpu", (SOURCE, FUSE), chosen=0), "The original stays"),
        (
            Ledger("m.onnx", "cpu", (UNKNOWN, replace(FUSE, gain=None)), chosen=1),
            "Optimised; the speed was not measured",
        ),
    ],
)
def test_every_ending_has_a_page(ledger, title):
    page = _Page(render_html(ledger, ReportExtras()))
    assert title in page.texts


def test_the_file_stays_small_enough_to_mail():
    picture = sample_extras().pictures[0]
    extras = replace(sample_extras(), pictures=(picture,) * 8)
    assert len(_page(extras=extras).encode()) < 2_000_000
    assert len(_page(extras=ReportExtras()).encode()) < 60_000


def _luminance(colour: str) -> float:
    channels = [int(colour[index : index + 2], 16) / 255 for index in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _contrast(one: str, other: str) -> float:
    """Contrast ratio of two #rrggbb colours, 1..21 (WCAG 2.2, 1.4.3)."""
    bright, dark = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


def _palettes() -> list[dict[str, str]]:
    style = (Path(html.__file__).parent / "report.css.j2").read_text()
    blocks = re.findall(r":root \{(.*?)\}", style, re.S)
    return [dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", block)) for block in blocks]


def test_text_has_enough_contrast_in_light_dark_and_print():
    palettes = _palettes()
    assert len(palettes) == 3
    pairs = [("ink", "page"), ("muted", "page"), ("ink", "accent-wash"), ("muted", "accent-wash")]
    pairs += [("page", "accent"), ("accent", "page"), ("ink", "panel"), ("rejected", "page")]
    pairs += [(name, f"{name}-wash") for name in ("pass", "rejected", "fail", "unknown")]
    for palette in palettes:
        weak = {pair for pair in pairs if _contrast(palette[pair[0]], palette[pair[1]]) < 4.5}
        assert weak == set()


def test_the_contrast_formula_knows_black_on_white_and_grey_on_white():
    assert _contrast("#000000", "#ffffff") == pytest.approx(21)
    assert _contrast("#999999", "#ffffff") < 4.5
