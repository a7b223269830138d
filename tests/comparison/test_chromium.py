"""The report in a real browser, without a network: on a desktop, on a phone, on paper, in the dark."""

import io
from pathlib import Path
from unicodedata import normalize

import numpy as np
import pytest
from comparison.made_up import FOUR, make_comparison
from PIL import Image
from pypdf import PdfReader

from worldmodel.comparison.figures import COLORS
from worldmodel.comparison.report import write_report
from worldmodel.comparison.verdict import judge

PLOTS = 6 + 2 * len(FOUR)  # errors, regret, norms in both loops; two rollouts of each variant
# band and line of each variant, a mark of the one that diverges, references; truth and three seeds, two entries each
TRACES = 2 * (4 * 2 + 1 + 4) + 2 * (4 * 2 + 1 + 1) + 2 * (4 * 2 + 1) + 2 * 4 * 2 * (1 + 3)


def write(folder: Path, **options) -> Path:
    comparison = make_comparison(folder, **options)
    write_report(comparison, judge(comparison), folder / "report.html")
    return folder / "report.html"


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("report"))


def drawn(page) -> tuple[int, int]:
    """How many plots, and traces in them, are in the page as SVG."""
    return page.locator(".js-plotly-plot .main-svg .xy").count(), page.locator(".scatterlayer .trace").count()


def pixels(shot: bytes) -> np.ndarray:
    """(N, 3)"""
    return np.asarray(Image.open(io.BytesIO(shot)).convert("RGB")).reshape(-1, 3).astype(int)


def share_of(color: str, of: np.ndarray) -> float:
    wanted = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
    return float((np.abs(of - wanted).max(axis=1) < 12).mean())


def sideways(page) -> list[str]:
    """Elements that stick out to the right, but for those that scroll in a box of their own."""
    return page.evaluate("""() => [...document.querySelectorAll("main *")]
        .filter((element) => !element.closest(".scroll > *, pre, svg") && element.offsetParent !== null)
        .filter((element) => element.getBoundingClientRect().right > innerWidth + 1)
        .map((element) => element.outerHTML.slice(0, 80))""")


def overlapping(page) -> list[str]:
    """Labels of the curves that lie on each other; ticks apart from what stands above the plot."""
    return page.evaluate("""() => [...document.querySelectorAll("#curves .js-plotly-plot, #norms .js-plotly-plot")]
        .flatMap((plot) => [".xtick text", ".ytick text", ".annotation-text"].flatMap((kind) => {
            const texts = [...plot.querySelectorAll(kind)];
            const boxes = texts.map((text) => text.getBoundingClientRect());
            if (boxes.length < 3) return [`${plot.id} has ${boxes.length} ${kind}`];
            return texts.flatMap((text, i) => boxes.slice(0, i).some((other) => {
                const { left, right, top, bottom } = boxes[i];
                return left < other.right && other.left < right && top < other.bottom && other.top < bottom;
            }) ? [`${plot.id}: ${text.textContent}`] : []);
        }))""")


@pytest.mark.parametrize("width", [400, pytest.param(1400, marks=pytest.mark.full)])
def test_everything_is_drawn_and_nothing_sticks_out(report, opened, width):
    with opened(report, width) as page:
        assert page.locator(".js-plotly-plot").count() == PLOTS
        assert drawn(page)[1] == TRACES
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert sideways(page) == []
        assert overlapping(page) == []
        page.locator("summary").evaluate_all("all => all.forEach((summary) => summary.click())")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert sideways(page) == []
        for plot in page.locator("#curves .js-plotly-plot").all():
            shot = pixels(plot.screenshot())
            assert share_of(COLORS["gated_norm"], shot) > 5e-4 and share_of(COLORS["residual"], shot) > 5e-4
        assert len(np.unique(pixels(page.locator("#tables").screenshot()), axis=0)) > 20


def test_hovering_tells_a_value_and_a_name_in_the_legend_hides_its_variant_everywhere(report, opened):
    with opened(report) as page:
        page.locator("#plot-error-closed").scroll_into_view_if_needed()
        x, y = page.evaluate("""() => {
            const plot = document.querySelector("#plot-error-closed");
            const { xaxis, yaxis } = plot._fullLayout, { left, top } = plot.getBoundingClientRect();
            const of = (points) => points[0].trace.meta === "residual, carry" && points.length > 60;
            const line = plot.calcdata.find(of);
            return [left + xaxis._offset + xaxis.c2p(line[60].x), top + yaxis._offset + yaxis.c2p(line[60].y)];
        }""")
        page.mouse.move(x - 3, y)
        page.mouse.move(x, y)
        said = page.wait_for_selector(".hoverlayer .hovertext").text_content()
        assert any(variant in said for variant in FOUR) and "of 3 seeds" in said
        button = page.locator("#curves [data-toggle='residual, zero']")
        button.click()
        page.wait_for_function(f"document.querySelectorAll('.scatterlayer .trace').length < {TRACES}")
        hidden = 4 * 3 + 2 * 3  # its band, line and mark in the curves; its panels are gone as a whole
        assert page.locator(".scatterlayer .trace").count() == TRACES - hidden
        assert page.locator("#norms [data-toggle='residual, zero']").get_attribute("aria-pressed") == "false"
        assert page.locator("#rollouts figure:visible").count() == 2 * (len(FOUR) - 1)
        button.click()
        page.wait_for_function(f"document.querySelectorAll('.scatterlayer .trace').length == {TRACES}")


def test_on_paper_everything_is_open(report, opened, tmp_path):
    with opened(report, scheme="dark") as page:
        page.pdf(path=tmp_path / "report.pdf", prefer_css_page_size=True)
        opened_now = page.locator("details[open]").count()
    pages = PdfReader(tmp_path / "report.pdf").pages
    text = normalize("NFKC", " ".join(page.extract_text() for page in pages)).replace("\n", " ")  # no ligatures
    said = [
        *FOUR,
        "Open loop: regret (error / floor)",
        "diverged 3/3",
        "Method",
        "--model.rule residual",
        "hidden_dim: 64",
    ]
    assert [words for words in said if words not in text] == []
    assert 3 <= len(pages) <= 12
    assert opened_now == 0  # and on the screen it is as it was


def test_in_the_dark(report, opened):
    with opened(report, scheme="dark") as page:
        assert np.median(pixels(page.locator("#plot-error-open").screenshot())) < 40
        ink = page.locator("#plot-error-open .xtick text").first.evaluate("text => getComputedStyle(text).fill")
        assert int(ink.removeprefix("rgb(").split(",")[0]) > 200


def test_hostile_names_are_only_names(tmp_path, opened):
    evil = ["<script>alert(1)</script>, carry", "\"'</script><img src=x onerror=alert(2)>&amp;, zero"]
    with opened(write(tmp_path, variants=evil, seeds=[0], env_id="</title><script>alert(3)</script>")) as page:
        assert page.title().startswith("</title><script>alert(3)</script>")
        for variant in evil:
            button = page.locator("#curves button", has_text=variant)
            assert button.count() == 1
            button.click()
        page.wait_for_function("document.querySelectorAll('#curves .trace').length == 4 + 4 + 1 + 1")  # references


@pytest.mark.parametrize(
    ("options", "plots"),
    [
        ({"variants": ["gru, carry"], "seeds": [0], "references": False, "diverging": []}, 4 + 2),
        ({"variants": FOUR[::2], "floor": False, "images": True, "failing": [("residual, carry", 1)]}, 4),
        ({"variants": FOUR[:2], "diverging": FOUR, "references": False}, 4 + 2 * 2),
    ],
    ids=["one run alone", "images and a failure", "all diverge"],
)
def test_other_comparisons_are_drawn(tmp_path, opened, options, plots):
    with opened(write(tmp_path, **options), 400) as page:
        assert page.locator(".js-plotly-plot").count() == plots
        assert page.locator(".scatterlayer .trace").count() > plots
        assert sideways(page) == []
        assert page.locator(".film img").evaluate_all("all => all.every((image) => image.naturalWidth > 0)")
