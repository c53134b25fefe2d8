"""The pages of a run and of a comparison in Chromium."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from recorded_runs import DATA, HOSTILE_CLASS, HOSTILE_NOTE

from federated_yolo.reporting import draw as report

CHROMIUM = shutil.which("chromium")
CHROMIUM_ARGUMENTS = (
    "--no-sandbox --disable-gpu --disable-background-networking --disable-component-update "
    "--disable-sync --no-first-run"
).split()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    if CHROMIUM is None:
        pytest.skip("needs Debian's chromium: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """The page of a run, and of a comparison."""
    folder = tmp_path_factory.mktemp("pages")
    run_dir = Path(shutil.copytree(DATA / "run", folder / "run"))
    output = folder / "comparison.html"
    assert report.main([str(run_dir), str(DATA / "yolo_train"), "-o", str(output)]) == 0
    report.draw_report(run_dir)
    return SimpleNamespace(run=run_dir / report.REPORT, comparison=output)


@contextmanager
def opened(browser: Any, path: Path, width: int = 1200, scheme: str = "light") -> Iterator[Any]:
    """The page without a network, once its charts are drawn; it must not complain or ask."""
    requests: list[str] = []
    complaints: list[str] = []
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True
    )
    try:
        page = context.new_page()
        page.on("request", lambda request: requests.append(request.url))
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(path.as_uri())
        page.wait_for_function(
            "divs.every(div => div.style.getPropertyValue('--ratio'))"  # once it is drawn
        )
        yield page
        assert complaints == []
        assert requests == [path.as_uri()]
    finally:
        context.close()


def test_the_page_opens_without_a_network_and_draws_every_chart(
    browser: Any, pages: SimpleNamespace
) -> None:
    with opened(browser, pages.run) as page:
        assert page.locator(".js-plotly-plot").count() == page.locator(".chart").count() == 14
        assert page.locator("#chart0 .scatterlayer .trace path.js-line").count() == 5
        assert page.locator(".heatmaplayer image").count() == 3
        assert page.locator(".barlayer .point path").count() == 4 * 3 + 4 * 2
        assert page.title() == "run – Federated YOLO"
        assert page.get_by_text(HOSTILE_NOTE).count() == 1
        assert HOSTILE_CLASS[:20] in page.locator("#chart7 .ytick").nth(1).text_content()
        unlabelled = "[...document.querySelectorAll('[role=img]')].filter(e => !e.ariaLabel).length"
        assert page.evaluate(unlabelled) == 0


def test_hovering_shows_the_value(browser: Any, pages: SimpleNamespace) -> None:
    with opened(browser, pages.run) as page:
        page.locator("#chart0").scroll_into_view_if_needed()
        point = page.locator("#chart0 .traceserver .point").last.bounding_box()
        page.mouse.move(point["x"] + point["width"] / 2, point["y"] + point["height"] / 2)
        label = page.locator("#chart0 .hoverlayer .hovertext")
        label.wait_for()
        assert label.text_content() == "server's dataround 4: 0.4513"


def test_the_legend_takes_a_client_out_of_all_curves(browser: Any, pages: SimpleNamespace) -> None:
    with opened(browser, pages.run) as page:
        page.get_by_role("button", name="north").click()
        for chart in ("#chart0", "#chart6"):
            page.wait_for_function(f"!document.querySelector('{chart} .traceclient0')")
            assert page.locator(f"{chart} .traceclient1").count() == 1
        page.get_by_role("button", name="north").click()
        page.wait_for_function("document.querySelector('#chart0 .traceclient0')")


@pytest.mark.parametrize("name", ["run", "comparison"])
def test_a_phone_needs_no_sideways_scrolling(
    browser: Any, pages: SimpleNamespace, name: str
) -> None:
    with opened(browser, getattr(pages, name), width=390) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert page.locator("#chart0 .main-svg").first.bounding_box()["width"] <= 390


@pytest.mark.parametrize(
    ("scheme", "ink", "soft"),
    [
        ("light", "rgb(28, 31, 35)", "rgb(93, 102, 112)"),
        ("dark", "rgb(233, 236, 239)", "rgb(154, 164, 174)"),
    ],
)
def test_text_and_curves_follow_light_and_dark(
    browser: Any, pages: SimpleNamespace, scheme: str, ink: str, soft: str
) -> None:
    style = "([query, name]) => getComputedStyle(document.querySelector(query))[name]"
    with opened(browser, pages.run, scheme=scheme) as page:
        assert page.evaluate(style, ["body", "color"]) == ink
        assert page.evaluate(style, ["#chart0 .tracefederation .js-line", "stroke"]) == ink
        assert page.evaluate(style, ["#chart0 .xtick text", "fill"]) == soft


def test_print_scales_the_charts_to_the_paper(browser: Any, pages: SimpleNamespace) -> None:
    with opened(browser, pages.run, scheme="dark") as page:
        page.emulate_media(media="print")
        page.set_viewport_size({"width": 690, "height": 900})
        ends = (
            "[...document.querySelectorAll('.main-svg')].map(s => s.getBoundingClientRect().right)"
        )
        assert max(page.evaluate(ends)) <= 691
        assert page.evaluate("getComputedStyle(document.body).color") == "rgb(28, 31, 35)"


def test_the_comparison_has_a_curve_for_each_run(browser: Any, pages: SimpleNamespace) -> None:
    with opened(browser, pages.comparison) as page:
        assert page.locator("#chart0 .scatterlayer .trace path.js-line").count() == 2
        assert page.locator("dl").get_by_text("0.420").count() == 1
