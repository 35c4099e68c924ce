"""A page in a real browser. Without playwright or a Chromium these tests are skipped; test_page.py parses pages.

A Chromium is found on PATH, or by the environment variable CHROMIUM.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from semiseg.report import page

BROWSER = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytest.importorskip("plotly", reason="needs the extra report")
pytestmark = pytest.mark.skipif(BROWSER is None, reason="there is no Chromium on PATH")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def opened(made: Callable[..., Any], tmp_path: Path, browser: Any) -> Iterator[Callable[..., Any]]:
    """opened(color_scheme="dark") -> a page of three runs; a message on the console or a request fails the test."""
    for name, method, seed in (
        ("imas/seed-0", "imas", 0),
        ("imas/seed-1", "imas", 1),
        ("base/seed-0", "imas_views", 0),
    ):
        made(name, method=method, seed=seed)
    page.write([tmp_path / "runs"], tmp_path / "page.html")
    said, contexts = [], []

    def opened(**options: Any) -> Any:
        contexts.append(browser.new_context(viewport={"width": 1200, "height": 900}, **options))
        shown = contexts[-1].new_page()
        shown.on("console", lambda message: said.append(message.text))
        shown.on("pageerror", lambda error: said.append(str(error)))
        local = ("file:", "data:", "blob:")
        shown.on("request", lambda request: None if request.url.startswith(local) else said.append(request.url))
        shown.goto(f"file://{tmp_path / 'page.html'}")
        shown.wait_for_selector("[data-chart=miou] .main-svg")
        return shown

    yield opened
    assert said == []
    for context in contexts:
        context.close()


def visible_lines(shown: Any, chart: str) -> list[str]:
    return shown.evaluate(
        f"document.querySelector('[data-chart=\"{chart}\"] .chart').data"
        ".filter((trace) => trace.visible !== false && !trace.fill).map((trace) => trace.name)"
    )


def background(shown: Any, selector: str = "body") -> str:
    return shown.evaluate(f"getComputedStyle(document.querySelector('{selector}')).backgroundColor")


def test_every_chart_is_drawn_when_it_comes_into_view(opened):
    shown = opened()
    charts = shown.locator("[data-chart]")
    for index in range(charts.count()):
        charts.nth(index).scroll_into_view_if_needed()
        charts.nth(index).locator(".main-svg").first.wait_for()
    assert charts.count() > 10


def test_runs_are_picked_with_the_keyboard(opened):
    shown = opened()
    assert visible_lines(shown, "miou") == ["base", "imas, teacher", "imas, student"]
    shown.locator("input[name=run]").first.focus()
    shown.keyboard.press("Space")
    assert visible_lines(shown, "miou") == ["imas, teacher", "imas, student"]
    assert shown.locator("[data-run='0']:visible").count() == 0
    shown.keyboard.press("Space")
    assert len(visible_lines(shown, "miou")) == 3


def test_a_choice_changes_its_chart(opened):
    shown = opened()
    shown.locator("[data-chart=classes]").scroll_into_view_if_needed()
    shown.locator("[data-chart=classes] .main-svg").first.wait_for()
    assert visible_lines(shown, "classes") == ["ground"]
    shown.select_option("[data-choice=class]", index=1)
    assert visible_lines(shown, "class") == []  # the class occurs nowhere


@pytest.mark.parametrize(("kind", "starts"), [("svg", b"<svg"), ("png", b"\x89PNG")])
def test_a_chart_is_saved_as_a_picture(opened, kind, starts):
    shown = opened()
    with shown.expect_download() as waiting:
        shown.locator(f"[data-chart=miou] [data-save={kind}]").click()
    assert waiting.value.suggested_filename == f"miou.{kind}"
    assert Path(waiting.value.path()).read_bytes().startswith(starts)


def test_single_images_are_followed_where_they_are_wanted(opened):
    shown = opened()
    shown.locator("[data-chart=hardness]").scroll_into_view_if_needed()
    shown.locator("[data-chart=hardness] .main-svg").first.wait_for()
    before = visible_lines(shown, "hardness")
    assert [name for name in before if "hardest" in name] == ["u3 (hardest, imas)"]
    shown.locator("[data-follow=hardness]").nth(1).check()
    assert len(visible_lines(shown, "hardness")) == len(before) + 1


def test_the_divider_moves_with_keys_and_with_the_mouse(opened):
    shown = opened()
    cut = "getComputedStyle(document.getElementById('layer-right')).clipPath"
    divider = shown.locator("#divider")
    divider.focus()
    assert shown.evaluate(cut) == "inset(0px 0px 0px 50%)"
    for _ in range(3):
        shown.keyboard.press("ArrowRight")
    assert shown.evaluate(cut) == "inset(0px 0px 0px 53%)"
    shown.keyboard.press("Home")
    assert shown.evaluate(cut) in ("inset(0px)", "inset(0px 0px 0px 0%)")
    box = shown.locator(".stage").bounding_box()
    shown.mouse.click(box["x"] + box["width"] * 0.25, box["y"] + box["height"] / 2)
    assert divider.input_value() == "25"


def test_sides_of_the_divider_are_chosen(opened):
    shown = opened()
    assert shown.locator(".tag.left").inner_text() == "truth"
    shown.select_option("#left", "image")
    shown.select_option("#right", "imas, student (seed 0)")
    assert [shown.locator(f".tag.{side}").inner_text() for side in ("left", "right")] == [
        "image",
        "imas, student (seed 0)",
    ]
    assert shown.locator("#layer-left img").count() == 1
    assert shown.locator("#layer-right img").count() == 2
    shown.locator(".card[data-show]").last.click()
    assert shown.locator(".tag.right").inner_text() == "imas, teacher (seed 0)"


def test_small_pictures_keep_their_shape(opened):
    """A black border would look like a class that is black."""
    shown = opened()
    shown.locator(".trio").first.scroll_into_view_if_needed()
    shapes = shown.evaluate("[...document.querySelectorAll('.trio img')].map((one) => one.width / one.height)")
    assert len(shapes) >= 3
    assert shapes == [pytest.approx(8 / 6, rel=0.2)] * len(shapes)


def test_a_legend_is_below_the_axis(opened):
    shown = opened()
    tops = "[...document.querySelectorAll('[data-chart=miou] {}')].map((one) => one.getBoundingClientRect().{})"
    (title,) = shown.evaluate(tops.format(".xtitle", "bottom"))
    (legend,) = shown.evaluate(tops.format(".legend", "top"))
    assert title <= legend


def test_the_theme_is_the_system_s_or_the_reader_s(opened):
    dark, light = opened(color_scheme="dark"), opened(color_scheme="light")
    assert background(dark) != background(light)
    plot = "document.querySelector('[data-chart=miou] .chart').layout.paper_bgcolor"
    assert dark.evaluate(plot) != light.evaluate(plot)
    light.select_option("#theme", "dark")
    assert background(dark) == background(light)
    assert dark.evaluate(plot) == light.evaluate(plot)
    light.reload()
    light.wait_for_selector("[data-chart=miou] .main-svg")
    assert background(light) == background(dark)  # remembered


def test_every_control_is_reached_with_the_keyboard(opened):
    shown = opened()
    wanted = {"theme", "matrix", "image", "before", "after", "left", "right", "divider", "opacity"}
    seen = set()
    for _ in range(300):
        shown.keyboard.press("Tab")
        seen.add(shown.evaluate("document.activeElement.id"))
        if wanted <= seen:
            break
    assert wanted <= seen


def test_a_small_window_has_no_sideways_scrolling(opened):
    shown = opened()
    shown.set_viewport_size({"width": 390, "height": 800})
    shown.wait_for_timeout(300)
    assert shown.evaluate("document.documentElement.scrollWidth") <= 390


def test_print_is_light_and_shows_all_charts(opened):
    shown = opened(color_scheme="dark")
    shown.evaluate("dispatchEvent(new Event('beforeprint'))")
    shown.emulate_media(media="print", color_scheme="dark")
    assert background(shown) == "rgb(255, 255, 255)"
    charts = shown.locator("[data-chart]").count()
    assert shown.locator("[data-chart] .chart.js-plotly-plot").count() == charts
    assert shown.pdf()[:4] == b"%PDF"
    shown.evaluate("dispatchEvent(new Event('afterprint'))")
    shown.emulate_media(media="screen")
    assert background(shown) != "rgb(255, 255, 255)"
