"""The page in headless Chromium: what a visitor does and sees. `make test-web` runs it."""

import io
import re
import shutil
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from PIL import Image

from proposal_cache import ContourGenerator
from samcp import Predictor

pytestmark = pytest.mark.web
playwright = pytest.importorskip("playwright.sync_api")

OUTPUT = Path("output/web")  # screenshots to look at
DESKTOP, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}
TIMEOUT = 300_000  # milliseconds; for a slow machine
PROGRAMS = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="module")
def predictor():
    generator = ContourGenerator(parts=30, patches=50)
    predictor = Predictor.from_pretrained(device="cpu", generator=generator)
    predictor.network_calls = Counter()
    for name in ("encode", "encode_patches", "predict"):
        _count(predictor, name)
    return predictor


def _count(predictor, name):
    original = getattr(predictor.model, name)

    def counted(*args):
        predictor.network_calls[name] += 1
        return original(*args)

    setattr(predictor.model, name, counted)


@pytest.fixture(scope="module")
def address(predictor):
    from samcp.web.server import serve

    with serve(predictor) as address:
        yield address


@pytest.fixture(scope="module")
def browser():
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)  # None: Playwright's own build
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(browser, address):
    """Return a function that opens the page as a new visitor, and waits for the first picture."""
    contexts = []

    def open_page(viewport=DESKTOP):
        contexts.append(browser.new_context(viewport=viewport))
        page = contexts[-1].new_page()
        page.set_default_timeout(TIMEOUT)
        page.goto(address)
        wait_for(page, "#legend", "person")
        return page

    yield open_page
    for context in contexts:
        context.close()


@pytest.fixture
def page(visit):
    return visit()


def wait_for(page, place, text):
    playwright.expect(page.locator(place)).to_contain_text(text, timeout=TIMEOUT)


def picture(page):
    """Return the picture on the page, (H, W, 3) uint8."""
    return np.asarray(Image.open(io.BytesIO(page.request.get(source(page)).body())).convert("RGB"))


def wait_for_found(page, word):
    """Wait until a word, and not "not found: WORD", is first in the legend."""
    playwright.expect(page.locator("#legend li").first).to_have_text(re.compile(rf"^\s*{word}\b"), timeout=TIMEOUT)


def wait_for_change(page, before):
    """Wait until the picture has another address than `before`."""
    playwright.expect(page.locator("#picture img")).not_to_have_attribute("src", before, timeout=TIMEOUT)


def source(page):
    return page.locator("#picture img").get_attribute("src")


def type_words(page, words):
    page.locator("#words textarea").fill(words)
    page.locator("#ask").click()


def click_picture(page, x, y):
    """Click at a place in units of the width and height of the picture."""
    box = page.locator("#picture img").bounding_box()
    page.mouse.click(box["x"] + x * box["width"], box["y"] + y * box["height"])


def choose_cat(page):
    before = source(page)
    page.locator("#examples button").nth(2).click()
    wait_for_change(page, before)


def test_first_visitor_sees_a_segmented_photograph_and_how_to_go_on(page):
    assert not np.array_equal(picture(page), skimage.data.astronaut())
    assert "person" in page.locator("#legend").inner_text()
    assert "Click on the picture" in page.locator("#hint").inner_text()
    page.screenshot(path=OUTPUT / "start.png")


def test_example_and_words_change_picture_and_legend(page):
    choose_cat(page)
    wait_for(page, "#legend", "blanket")
    page.locator("#confidence input[type=range]").fill("0.05")  # few patches give low scores
    wait_for_found(page, "cat")
    before = source(page)
    type_words(page, "sky~, tiger: cat")
    wait_for_change(page, before)
    wait_for_found(page, "tiger")
    assert "blanket" not in page.locator("#legend").inner_text()


def test_click_shows_bars_and_group(page):
    before = source(page)
    click_picture(page, 0.45, 0.6)
    wait_for_change(page, before)
    wait_for(page, "#bars", "person")
    wait_for(page, "#group", "others are one person")
    assert "%" in page.locator("#bars").inner_text()
    assert page.locator("#confidence input[type=number]").input_value() == "0.35"
    page.screenshot(path=OUTPUT / "click.png")


def test_views_have_pictures_and_legends(page):
    panoptic = source(page)
    for view, legend in (("semantic", "person"), ("patches", "50 patches")):
        page.locator("#view label", has_text=view).click()
        wait_for_change(page, panoptic)
        wait_for(page, "#legend", legend)
    page.screenshot(path=OUTPUT / "patches.png")
    page.locator("#view label", has_text="instances").click()
    wait_for(page, "#legend", "person")


def test_slider_changes_the_picture_without_the_network(page, predictor):
    before, calls = source(page), dict(predictor.network_calls)
    page.locator("#confidence input[type=range]").fill("0.95")
    wait_for_change(page, before)
    wait_for(page, "#legend", "not found: person, helmet, flag")
    assert predictor.network_calls == calls


def test_look_closer_adds_patches(page):
    page.locator("#closer input").check()
    click_picture(page, 0.3, 0.02)
    wait_for(page, "#note", "Now click the opposite corner.")
    click_picture(page, 0.65, 0.4)
    wait_for(page, "#note", "finer patches were added")
    page.locator("#view label", has_text="patches").click()
    wait_for(page, "#legend", "patches, which overlap")
    assert int(page.locator("#legend").inner_text().split()[0]) > 50
    page.screenshot(path=OUTPUT / "closer.png")


def test_view_chosen_while_words_are_computed_is_kept(page):
    type_words(page, "astronaut: person, dog")
    page.locator("#view label", has_text="semantic").click()
    wait_for(page, "#legend", "astronaut")
    playwright.expect(page.locator("#view label.selected")).to_have_text("semantic", timeout=TIMEOUT)


def test_two_visitors_get_their_own_words(visit):
    one, other = visit(), visit()
    type_words(one, "woman: person")
    type_words(other, "astronaut: person, dog")
    wait_for(one, "#legend", "woman")
    wait_for(other, "#legend", "astronaut")
    assert "astronaut" not in one.locator("#legend").inner_text()
    assert "dog" not in one.locator("#legend").inner_text()


def test_unknown_word_is_a_message(page):
    before = source(page)
    type_words(page, "elefant")
    wait_for(page, "#note", "near: elephant")
    assert source(page) == before


def test_upload_of_a_photograph(page, tmp_path):
    Image.fromarray(skimage.data.chelsea()).resize((225, 150)).save(tmp_path / "tabby.png")
    before = source(page)
    page.locator("input[type=file]").set_input_files(tmp_path / "tabby.png")
    wait_for_change(page, before)
    assert picture(page).shape == (150, 225, 3)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("notes.txt", "Invalid file type"),
        ("notes.jpg", "notes.jpg is not a photograph that can be read"),
        ("huge.png", "at most 50 million are allowed"),
        ("heavy.png", "exceed the maximum allowed size"),
    ],
)
def test_bad_uploads_give_one_message(page, tmp_path, name, message):
    path = tmp_path / name
    if name == "huge.png":
        Image.new("1", (9000, 8000)).save(path)
    else:
        path.write_bytes(b"no image" if name.startswith("notes") else bytes(22 * 2**20))
    before = source(page)
    page.locator("input[type=file]").set_input_files(path)
    playwright.expect(page.get_by_text(message)).to_be_visible(timeout=TIMEOUT)
    assert "Traceback" not in page.content()
    assert source(page) == before


def test_download_has_png_and_json(page, tmp_path):
    with page.expect_download(timeout=TIMEOUT) as download:
        page.locator("#save").click()
    download.value.save_as(tmp_path / "files.zip")
    with zipfile.ZipFile(tmp_path / "files.zip") as archive:
        assert {"panoptic/astronaut.png", "astronaut.json", "view.png"} <= set(archive.namelist())


def test_phone_needs_no_horizontal_scrolling(visit):
    page = visit(PHONE)
    click_picture(page, 0.45, 0.6)
    wait_for(page, "#bars", "person")
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    page.screenshot(path=OUTPUT / "phone.png", full_page=True)


def test_nothing_is_requested_from_other_hosts(browser, address):
    context = browser.new_context()
    requests = []
    context.on("request", lambda request: requests.append(request.url))
    page = context.new_page()
    page.goto(address)
    wait_for(page, "#legend", "person")
    context.close()
    assert [url for url in requests if not url.startswith((address, "data:", "blob:"))] == []
