"""The page in a browser, on a real server: what each control does to the picture, pixel by pixel."""

import json
import time
from collections.abc import Iterator
from functools import partial
from io import BytesIO
from pathlib import Path
from urllib.parse import quote
from urllib.request import urlopen

import numpy as np
import pytest
from browser import CHROMIUM, Page, browser
from model_site import ATTRIBUTES, CLASSES, SIDE, Site, serve
from PIL import Image
from served_models import write_served_resnet

from stylegan.drawing.draw import draw
from stylegan.training.state import load_model
from stylegan.verbs.serve import projection_means

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium, which is not installed"),
]

# Counts what the page holds and asks at once.
COUNTERS = """
window.counted = {urls: 0, steps: 0, asked: {}, most: {}};
const {createObjectURL, revokeObjectURL} = URL;
URL.createObjectURL = (blob) => { counted.urls += 1; return createObjectURL.call(URL, blob); };
URL.revokeObjectURL = (url) => { counted.urls -= 1; return revokeObjectURL.call(URL, url); };
const {pushState} = history;
history.pushState = (...of) => { counted.steps += 1; return pushState.call(history, ...of); };
const asks = window.fetch;
window.fetch = async (url, options) => {
  const name = String(url).split("?")[0];
  counted.asked[name] = (counted.asked[name] ?? 0) + 1;
  counted.most[name] = Math.max(counted.most[name] ?? 0, counted.asked[name]);
  try { return await asks(url, options); } finally { counted.asked[name] -= 1; }
};
"""
PIXELS = """(async () => {{
  const image = document.getElementById({id});
  if (image.hidden || !image.complete || !image.naturalWidth) return null;
  const canvas = new OffscreenCanvas(image.naturalWidth, image.naturalHeight);
  const brush = canvas.getContext("2d");
  brush.drawImage(image, 0, 0);
  return [canvas.width, ...brush.getImageData(0, 0, canvas.width, canvas.height).data];
}})()"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with serve(tmp_path_factory.mktemp("site")) as served:
        yield served


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("profile")) as new_page:
        page = new_page()
        page.call("Page.addScriptToEvaluateOnNewDocument", source=COUNTERS)
        yield page


@pytest.fixture
def page(tab: Page, site: Site) -> Iterator[Page]:
    """The page as it opens; at its end nothing has gone wrong in it, and nothing was asked of another server."""
    tab.errors.clear()
    tab.requests.clear()
    tab.resize(1280, 900)
    tab.prefer(prefers_color_scheme="light", prefers_reduced_motion="no-preference")
    tab.open(site.url)
    tab.wait("!document.getElementById('picture').hidden")
    yield tab
    assert not tab.errors
    assert not [url for url in tab.requests if not url.startswith(site.url)]


def drawn(site: Site, query: str) -> np.ndarray:
    """Return what the server draws for a query, [r, r, 3]."""
    with urlopen(f"{site.url}image.png?{query}", timeout=60) as answer:
        return np.asarray(Image.open(BytesIO(answer.read())).convert("RGB"))


def seen(page: Page, name: str = "picture") -> np.ndarray | None:
    """Return the pixels of an image of the page, [r, r, 3]."""
    values = page.run(PIXELS.format(id=json.dumps(name)))
    return values and np.array(values[1:], dtype=np.uint8).reshape(-1, values[0], 4)[:, :, :3]


def shows(page: Page, expected: np.ndarray, name: str = "picture") -> bool:
    """Wait until an image of the page is what is expected; return whether it became so."""
    end = time.monotonic() + 15
    while time.monotonic() < end:
        pixels = seen(page, name)
        if pixels is not None and np.array_equal(pixels, expected):
            return True
        time.sleep(0.05)
    return False


def text(page: Page, name: str) -> str:
    return page.run(f"document.getElementById({json.dumps(name)}).textContent")


def focus(page: Page, name: str) -> None:
    page.run(f"document.getElementById({json.dumps(name)}).focus()")


def type_into(page: Page, name: str, value: str) -> None:
    """Replace the content of a field by typing."""
    focus(page, name)
    page.run(f"document.getElementById({json.dumps(name)}).select()")
    page.call("Input.insertText", text=value)


def hash_of(page: Page) -> str:
    return page.run("location.hash.slice(1)")


def go(page: Page, query: str) -> None:
    page.run(f"location.hash = {json.dumps(query)}")


def test_the_first_picture_is_what_sample_draws(page: Page, site: Site) -> None:
    generator, _ = load_model(str(site.folder / "1"))
    assert shows(page, draw(generator, [0], labels=[0])[0].permute(1, 2, 0).numpy())
    assert text(page, "name") == "digits"
    assert text(page, "facts") == "Version 1 (champion) · 16x16 pixels, colour · 3 classes"
    assert hash_of(page) == ""


@pytest.mark.parametrize("size", [(1280, 900), (1275, 741), (900, 650), (360, 740)])
def test_the_picture_is_enlarged_to_whole_pixels(page: Page, size: tuple[int, int]) -> None:
    page.resize(*size)
    page.wait(f"innerWidth === {size[0]}")
    page.run("new Promise(requestAnimationFrame)")
    width, room, rendering = page.run(
        "(i => [i.getBoundingClientRect().width, i.parentElement.clientWidth, getComputedStyle(i).imageRendering])"
        "(document.getElementById('picture'))"
    )
    assert width % SIDE == 0
    assert min(room, size[1] * 0.42) - SIDE < width <= room
    assert rendering == "pixelated"


def test_seeds_are_typed_stepped_and_drawn_by_chance(page: Page, site: Site) -> None:
    type_into(page, "seed", "41")
    assert shows(page, drawn(site, "seed=41"))
    page.click("#seed-next")
    assert shows(page, drawn(site, "seed=42"))
    page.click("#seed-previous")
    page.click("#seed-previous")
    assert shows(page, drawn(site, "seed=40"))
    page.click("#seed-random")
    seed = page.run("document.getElementById('seed').value")
    assert seed != "40"
    assert shows(page, drawn(site, f"seed={seed}"))
    assert hash_of(page) == f"seed={seed}"


def test_a_seed_beyond_the_exact_numbers_of_a_browser_is_exact(page: Page, site: Site) -> None:
    type_into(page, "seed", "999999999999999998")
    assert shows(page, drawn(site, "seed=999999999999999998"))
    page.press("ArrowUp")
    assert shows(page, drawn(site, "seed=999999999999999999"))
    page.press("ArrowUp")
    assert shows(page, drawn(site, "seed=0"))  # after the last comes the first


def test_psi_changes_the_picture_and_0_makes_all_seeds_equal(page: Page, site: Site) -> None:
    focus(page, "psi-range")
    page.press("End")
    assert shows(page, drawn(site, "psi=2"))
    type_into(page, "psi", "0.3")
    assert shows(page, drawn(site, "psi=0.3"))
    page.press("ArrowUp")
    assert shows(page, drawn(site, "psi=0.35"))
    page.press("ArrowDown")
    assert page.run("document.getElementById('psi-range').value") == "0.3"
    average = drawn(site, "seed=1&psi=0&noise=none")
    assert not np.array_equal(average, drawn(site, "seed=1&noise=none"))
    for seed in (1, 2):
        go(page, f"seed={seed}&psi=0&noise=none")
        page.wait(f"document.getElementById('caption').textContent.includes('seed {seed} ')")
        assert shows(page, average)


def test_classes_are_chosen_by_name(page: Page, site: Site) -> None:
    assert page.run("[...document.getElementById('label').options].map(o => o.text)") == list(CLASSES)
    focus(page, "label")
    page.press("ArrowDown")
    assert shows(page, drawn(site, "label=" + quote("dog & co")))
    assert not np.array_equal(drawn(site, "label=" + quote("dog & co")), drawn(site, ""))


def test_noise_is_own_fixed_stored_or_none(page: Page, site: Site) -> None:
    pictures = [drawn(site, f"seed=0&noise={noise}") for noise in ("own", "stored", "none")]
    for noise, picture in zip(("own", "stored", "none"), pictures, strict=True):
        page.click(f"input[value={noise}]")
        assert shows(page, picture)
    assert not any(np.array_equal(a, b) for a, b in zip(pictures, pictures[1:] + pictures[:1], strict=True))
    page.click("input[value=fixed]")
    type_into(page, "noise-seed", "17")
    assert shows(page, drawn(site, "seed=0&noise=17"))
    page.click("#noise-new")
    noise = page.run("document.getElementById('noise-seed').value")
    assert noise != "17"
    assert shows(page, drawn(site, f"seed=0&noise={noise}"))


def test_the_ends_of_the_crossover_are_the_two_seeds(page: Page, site: Site) -> None:
    go(page, "seed=3&noise=none")
    page.click("#mixing")
    type_into(page, "mix", "8")
    assert shows(page, drawn(site, "seed=3&noise=none&mix=8&crossover=3"))
    one, other = drawn(site, "seed=3&noise=none"), drawn(site, "seed=8&noise=none")
    assert shows(page, one, "first")
    assert shows(page, other, "second")
    focus(page, "crossover")
    page.press("Home")
    assert shows(page, other)
    assert text(page, "crossover-hint") == "All layers from seed 8."
    page.press("End")
    assert shows(page, one)
    page.press("ArrowLeft")
    page.press("ArrowLeft")
    assert shows(page, drawn(site, "seed=3&noise=none&mix=8&crossover=4"))
    hint = "Layers 0 to 3 (4x4 to 8x8) from seed 3, layers 4 and 5 (16x16) from seed 8."
    assert text(page, "crossover-hint") == hint
    assert (
        page.run("[...document.querySelectorAll('.layer')].map(l => l.className)")
        == ["layer first"] * 4 + ["layer second"] * 2
    )
    page.click("#mixing")
    assert shows(page, one)


def test_attributes_edit_the_picture(page: Page, site: Site) -> None:
    assert page.run("[...document.querySelectorAll('#attributes label')].map(l => l.textContent)") == list(ATTRIBUTES)
    focus(page, "edit-old: 60+")
    page.press("End")
    edited = drawn(site, "seed=0&edit=" + quote("old: 60+:3", safe=""))
    assert shows(page, edited)
    assert not np.array_equal(edited, drawn(site, "seed=0"))
    page.reload()
    assert shows(page, edited)
    page.click("#attributes-zero")
    assert shows(page, drawn(site, "seed=0"))


def test_a_walk_goes_on_smoothly_with_one_noise_and_stops_where_it_is(page: Page, site: Site) -> None:
    focus(page, "speed")
    page.press("Home")  # the fastest
    page.run("document.activeElement.blur()")
    page.press(" ")
    captions = {page.run("document.getElementById('caption').textContent") for _ in range(60) if not time.sleep(0.02)}
    page.wait("document.getElementById('caption').textContent.includes('from seed 2')")
    assert len(captions) > 10
    assert all("noise 0" in caption for caption in captions)
    page.click("#play")
    page.wait("location.hash.includes('&t=')")
    assert shows(page, drawn(site, hash_of(page)))
    assert "noise=0" in hash_of(page)
    before = text(page, "caption")
    time.sleep(0.3)
    assert text(page, "caption") == before


def test_a_walk_goes_in_steps_where_less_motion_is_asked_for(page: Page, site: Site) -> None:
    page.prefer(prefers_reduced_motion="reduce")
    page.press(" ")
    page.wait("document.getElementById('caption').textContent.includes('from seed 0 ')")
    captions = {text(page, "caption") for _ in range(50) if not time.sleep(0.04)}
    page.wait("document.getElementById('caption').textContent.includes('from seed 2 ')")
    assert all(caption.startswith("0 % of the way") for caption in captions)
    assert len(captions) <= 4
    page.press(" ")
    assert shows(page, drawn(site, "seed=2&noise=0"))


def test_a_link_holds_the_state_and_the_history_leads_back(page: Page, site: Site) -> None:
    query = "seed=7&psi=0.6&label=7&noise=5&mix=2&crossover=2&edit=smile%3A-1.5"
    page.open(f"{site.url}#{query}")
    assert shows(page, drawn(site, query))
    values = {
        "seed": "7",
        "psi": "0.6",
        "label": "7",
        "noise-seed": "5",
        "mix": "2",
        "crossover": "2",
        "edit-smile": "-1.5",
    }
    for name, value in values.items():
        assert page.run(f"document.getElementById({json.dumps(name)}).value") == value
    page.click("#seed-next")
    page.click("#mixing")
    later = "seed=8&psi=0.6&label=7&noise=5&edit=smile%3A-1.5"
    assert shows(page, drawn(site, later))
    page.run("history.back()")
    page.run("history.back()")
    assert shows(page, drawn(site, query))
    page.run("history.forward()")
    page.run("history.forward()")
    assert shows(page, drawn(site, later))
    page.click("#reset")
    assert shows(page, drawn(site, ""))
    assert hash_of(page) == ""


def test_what_a_link_asks_in_vain_is_said(page: Page, site: Site) -> None:
    page.open(f"{site.url}#seed=4&label=bird&crossover=99&colour=red&psi=abc")
    assert shows(page, drawn(site, "seed=4"))
    said = "This model cannot show psi=abc, label=bird, crossover=99, colour; the rest is shown."
    assert text(page, "news") == said


def test_keys_do_everything(page: Page, site: Site) -> None:
    page.press("ArrowRight")
    page.press("ArrowRight")
    page.press("ArrowLeft")
    page.press("ArrowDown")
    page.press("ArrowDown")
    assert shows(page, drawn(site, "seed=1&psi=0.9"))
    page.press("m")
    page.press("]")
    assert shows(page, drawn(site, "seed=1&psi=0.9&mix=2&crossover=4"))
    page.press("[")
    assert shows(page, drawn(site, "seed=1&psi=0.9&mix=2&crossover=3"))
    page.press("n")
    page.press("r")
    assert page.wait("location.hash.includes('noise=') && !location.hash.includes('seed=1&')")
    page.press("0")
    assert shows(page, drawn(site, ""))
    page.press("?")
    assert page.run("document.getElementById('keys').open")
    page.press("ArrowRight")  # is not for the page while the help is open
    page.click("#shortcuts")
    page.press("Escape")
    page.press("ArrowRight")
    assert not page.run("document.getElementById('keys').open")
    page.run("document.activeElement.blur()")
    page.press("ArrowRight")
    assert shows(page, drawn(site, ""))  # shortcuts are off
    page.click("#help")
    page.click("#shortcuts")
    page.press("Escape")


def test_tab_reaches_every_control_and_the_focus_is_seen(page: Page) -> None:
    visible = page.run(
        "[...document.querySelectorAll('main button, main a[href], main input, main select')]"
        ".filter(e => e.checkVisibility() && !e.disabled).length"
    )
    reached = set()
    for _ in range(visible + 5):
        page.press("Tab")
        found = page.run(
            "(e => [e.id || e.value, getComputedStyle(e).outlineStyle, e.parentElement.matches('.choices label, #drop')])"
            "(document.activeElement)"
        )
        reached.add(found[0])
        if found[0] and not found[2]:  # radio buttons and the file show it on what stands for them
            assert found[1] != "none", found
    controls = {
        "play",
        "copy",
        "reset",
        "help",
        "seed",
        "seed-next",
        "psi-range",
        "psi",
        "label",
        "mixing",
        "speed",
        "file",
    }
    assert controls <= reached


def test_a_download_is_the_picture(page: Page, site: Site, tmp_path: Path) -> None:
    page.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    go(page, "seed=9&psi=0.5")
    assert shows(page, drawn(site, "seed=9&psi=0.5"))
    page.press("d")
    target = tmp_path / "digits-v1-seed9-psi0.5.png"
    end = time.monotonic() + 15
    while not target.exists() and time.monotonic() < end:
        time.sleep(0.05)
    assert np.array_equal(np.asarray(Image.open(target)), drawn(site, "seed=9&psi=0.5"))


def test_the_link_is_copied(page: Page, site: Site) -> None:
    page.call(
        "Browser.grantPermissions",
        permissions=["clipboardReadWrite", "clipboardSanitizedWrite"],
        origin=site.url.rstrip("/"),
    )
    page.call("Page.bringToFront")
    page.press("ArrowRight")
    page.press("c")
    page.wait("document.getElementById('news').textContent === 'The link is copied.'")
    assert page.run("navigator.clipboard.readText()") == f"{site.url}#seed=1"


def test_requests_of_a_picture_do_not_pile_up_and_old_pictures_are_freed(page: Page, site: Site) -> None:
    for _ in range(60):
        page.press("ArrowRight")
    assert shows(page, drawn(site, "seed=60"))
    assert page.run("counted.most['image.png']") == 1
    assert page.run("counted.urls") == 1
    assert page.run("counted.steps") < 20  # of a burst of one key, the history keeps the last


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A JPEG that is no picture of the model: wider than high."""
    rows, columns = np.mgrid[0:90, 0:160]
    values = np.stack([rows * 2, columns, 128 + 100 * np.sin(rows / 9) * np.cos(columns / 11)], axis=-1)
    Image.fromarray(values.astype(np.uint8)).save(tmp_path / "photo.jpg")
    return tmp_path / "photo.jpg"


def test_an_upload_is_projected_compared_and_edited(page: Page, site: Site, photo: Path) -> None:
    page.choose_file("#file", photo)
    page.wait("document.getElementById('progress').value > 5", 60)
    assert "Step" in text(page, "progress-text")
    page.wait("!document.getElementById('compare').hidden", 240)
    found = hash_of(page)
    assert found.startswith("w=")
    assert shows(page, drawn(site, found))
    assert shows(page, drawn(site, found), "after")
    with urlopen(f"{site.url}projections/{found[2:]}/target.png", timeout=30) as answer:
        target = np.asarray(Image.open(BytesIO(answer.read())))
    assert target.shape == (SIDE, SIDE, 3)
    assert shows(page, target, "before")
    assert text(page, "verdict")
    assert "160x90" in text(page, "remarks")
    assert "PSNR" in text(page, "numbers")
    assert page.run("document.getElementById('play').disabled")

    focus(page, "edit-smile")
    page.press("Home")
    edited = f"{found}&edit=smile%3A-3"
    assert shows(page, drawn(site, edited))
    page.reload()
    assert shows(page, drawn(site, edited))
    page.wait("!document.getElementById('compare').hidden")
    assert shows(page, target, "before")
    page.click("#seeds-again")
    assert shows(page, drawn(site, "seed=0&edit=smile%3A-3"))


def test_a_search_is_cancelled(page: Page, site: Site, photo: Path) -> None:
    page.run(
        "window.sent = []; const f = window.fetch; window.fetch = (u, o) => { sent.push([o?.method ?? 'GET', u]); return f(u, o); }"
    )
    page.choose_file("#file", photo)
    page.wait("document.getElementById('progress').value > 5", 60)
    page.click("#cancel")
    page.wait("document.getElementById('news').textContent === 'The search was cancelled.'")
    page.wait("sent.some(([method]) => method === 'DELETE')")
    assert page.run("document.getElementById('search').hidden")
    assert hash_of(page) == ""


def test_a_dropped_file_that_is_no_picture_is_refused_in_words(page: Page) -> None:
    page.run(
        "(() => { const data = new DataTransfer(); data.items.add(new File(['x'], 'notes.txt', {type: 'text/plain'}));"
        "window.dispatchEvent(new DragEvent('drop', {dataTransfer: data, bubbles: true, cancelable: true})) })()"
    )
    assert text(page, "problem") == "notes.txt: is no PNG, JPEG or WebP picture."
    assert page.run("document.getElementById('search').hidden")


def test_a_pasted_picture_that_the_server_cannot_read_is_refused_in_words(page: Page) -> None:
    page.run(
        "(() => { const data = new DataTransfer(); data.items.add(new File(['x'], 'a.png', {type: 'image/png'}));"
        "window.dispatchEvent(new ClipboardEvent('paste', {clipboardData: data, bubbles: true, cancelable: true})) })()"
    )
    page.wait("document.getElementById('problem').textContent === 'The body: must be a PNG, JPEG or WebP file.'")
    page.errors.clear()  # the browser notes the answer 422


def test_a_refusal_of_the_server_is_said_and_taken_back(page: Page, site: Site) -> None:
    type_into(page, "psi", "11")
    page.wait("document.getElementById('problem').textContent.startsWith('psi=11: must be a number from -10 to 10')")
    type_into(page, "psi", "0.5")
    assert shows(page, drawn(site, "psi=0.5"))
    assert text(page, "problem") == ""
    page.errors.clear()  # the browser notes the answer 422


def test_a_server_that_is_away_is_said_and_asked_again(page: Page, site: Site) -> None:
    offline = {"offline": True, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    page.call("Network.emulateNetworkConditions", **offline)
    page.press("ArrowRight")
    page.wait("document.getElementById('away').textContent === 'The server does not answer. Trying again in 1 s.'")
    page.call("Network.emulateNetworkConditions", **offline | {"offline": False})
    assert shows(page, drawn(site, "seed=1"))
    assert text(page, "away") == ""
    page.errors.clear()  # the browser notes requests without an answer


def test_nothing_scrolls_sideways_on_a_phone_and_the_picture_stays_in_sight(page: Page) -> None:
    page.resize(360, 740, mobile=True)
    go(page, "seed=123456789012345678&noise=3&mix=999999999999999999&crossover=3&edit=smile%3A1.5")
    page.wait("!document.getElementById('second').hidden")
    assert page.run("document.documentElement.scrollWidth") == 360
    wide = page.run(
        "[...document.querySelectorAll('main *')].filter(e => e.checkVisibility() && e.getBoundingClientRect().right > 360.5)"
        ".map(e => e.id || e.className)"
    )
    assert not wide
    page.run("window.scrollTo(0, document.body.scrollHeight)")
    top, bottom = page.run("(b => [b.top, b.bottom])(document.getElementById('stage').getBoundingClientRect())")
    assert 0 <= top < bottom <= 740 / 2


def test_dark_and_light_differ_and_both_can_be_read(page: Page) -> None:
    shots = []
    for scheme in ("light", "dark"):
        page.prefer(prefers_color_scheme=scheme)
        shots.append(np.asarray(Image.open(BytesIO(page.screenshot())).convert("L")))
        ink, muted, back = (
            page.run(f"getComputedStyle(document.{of}).{what}")
            for of, what in [("body", "color"), ("getElementById('facts')", "color"), ("body", "backgroundColor")]
        )
        assert contrast(ink, back) > 7
        assert contrast(muted, back) > 4.5
    light, dark = shots
    assert light[:80].mean() > 200
    assert dark[:80].mean() < 60


def contrast(one: str, other: str) -> float:
    """Return the contrast of two CSS colours after WCAG 2."""

    def luminance(colour: str) -> float:
        parts = np.array([int(part) for part in colour[4:-1].split(",")]) / 255
        linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    low, high = sorted([luminance(one), luminance(other)])
    return (high + 0.05) / (low + 0.05)


def test_a_new_version_is_said_and_drawn(page: Page, site: Site) -> None:
    old = drawn(site, "seed=2")
    go(page, "seed=2")
    assert shows(page, old)
    site.promote()
    assert not np.array_equal(drawn(site, "seed=2"), old)
    page.press("ArrowRight")
    page.wait("!document.getElementById('version').hidden")
    assert "now draws with version 2" in text(page, "version-text")
    assert "before, it was version 1" in text(page, "version-text")
    assert text(page, "facts").startswith("Version 2 (champion)")
    assert shows(page, drawn(site, "seed=3"))
    page.click("#version-seen")
    assert page.run("document.getElementById('version').hidden")

    site.promote()  # also where nobody touches anything, as soon as the page is looked at
    page.run("document.dispatchEvent(new Event('visibilitychange'))")
    assert shows(page, drawn(site, "seed=3"))
    assert text(page, "facts").startswith("Version 3")


def test_the_page_keeps_its_policy_and_works_with_a_token(tab: Page, tmp_path: Path) -> None:
    with serve(tmp_path, token="open-sesame") as site:
        tab.errors.clear()
        tab.open(f"{site.url}?token=open-sesame")
        tab.wait("!!document.getElementById('picture') && !document.getElementById('picture').hidden")
        assert "token" not in tab.run("location.href")
        assert tab.run("document.cookie") == ""
        policy = tab.run("fetch('').then(r => r.headers.get('Content-Security-Policy'))")
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        tab.run("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.broken = 1\">')")
        tab.wait("true")
        assert tab.run("window.broken") is None
        tab.errors.clear()


def test_a_resnet_has_seeds_classes_and_a_walk_alone(tab: Page, tmp_path: Path) -> None:
    """What it does not have is not shown, is said of a link, and no key reaches it."""
    with serve(tmp_path) as site:
        found = write_served_resnet(tmp_path / "resnet", version="2", labels=CLASSES)
        site.models.means_of = partial(projection_means, None, "cpu")
        site.models.find = lambda: found
        site.models.look()
        tab.errors.clear()
        tab.open(f"{site.url}#seed=3&label=7&psi=0.5&mix=4&noise=none")
        tab.wait("!document.getElementById('picture').hidden")
        for name in ("psi-row", "mix-section", "noise-section", "attributes-section", "upload"):
            assert tab.run(f"document.getElementById('{name}').hidden"), name
        assert not tab.run("document.getElementById('label-row').hidden")
        assert "cannot show psi=0.5, noise=none, mix=4" in text(tab, "news")
        assert "has no w to project pictures into" in text(tab, "no-projection")
        assert shows(tab, drawn(site, "seed=3&label=7"))
        assert text(tab, "caption") == "seed 3 · class 7"
        for key in ("ArrowUp", "m", "n"):
            tab.press(key)
        assert shows(tab, drawn(site, "seed=3&label=7"))
        tab.press("ArrowRight")
        assert shows(tab, drawn(site, "seed=4&label=7"))
        assert "noise" not in text(tab, "walk-hint")
        tab.press("?")
        listed = tab.run(
            "[...document.querySelectorAll('#keys dd')].filter((e) => e.offsetParent).map((e) => e.textContent)"
        )
        assert "random seed" in listed
        assert not {"psi up, down", "new noise", "second seed on, off", "choose your own picture"} & set(listed)
        tab.press("Escape")
        tab.click("#play")
        tab.wait("document.getElementById('caption').textContent.includes('of the way')")
        tab.click("#play")
        assert not tab.errors
