"""The page's files: nothing from elsewhere, nothing inline, and every element that a script names is there."""

import re
from html.parser import HTMLParser
from importlib.resources import files

import pytest

PAGE = files("stylegan.serving") / "page"
FILES = {file.name: file.read_text() for file in PAGE.iterdir()}
SCRIPTS = {name: text for name, text in FILES.items() if name.endswith(".js")}
HTML = FILES["index.html"]
IDS = re.findall(r'\bid="([^"]+)"', HTML)


class Reader(HTMLParser):
    """Collects the elements of a page: (tag, attributes, whether it is in a label), and the text in scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None], bool]] = []
        self.inline = ""
        self.in_label = False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.in_label |= tag == "label"
        self.elements.append((tag, dict(attrs), self.in_label))

    def handle_endtag(self, tag):
        self.in_label &= tag != "label"

    def handle_data(self, data):
        if self.elements and self.elements[-1][0] in ("script", "style"):
            self.inline += data.strip()


ELEMENTS = Reader(HTML).elements


def test_the_page_is_these_files():
    assert sorted(FILES) == ["dom.js", "index.html", "page.css", "page.js", "projection.js", "server.js", "state.js"]


@pytest.mark.parametrize("name", FILES)
def test_no_file_names_another_place(name):
    assert not re.findall(r"(?:https?:)?//[\w.-]+\.\w+|@import|url\(", FILES[name])


def test_the_policy_of_the_page_can_be_kept():
    assert Reader(HTML).inline == ""
    for tag, attributes, _ in ELEMENTS:
        assert tag != "style"
        assert not [name for name in attributes if name.startswith("on") or name == "style"], (tag, attributes)
    for text in SCRIPTS.values():
        assert not re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|Function\(", text)
        assert 'setAttribute("style"' not in text


def test_addresses_are_relative_so_that_the_page_works_below_a_prefix():
    links = [value for _, attributes, _ in ELEMENTS for name, value in attributes.items() if name in ("href", "src")]
    assert links
    assert not [link for link in links if link and link.startswith("/")]
    for text in SCRIPTS.values():
        assert not re.findall(r"[\"'`]/[a-z]", text)


def test_every_file_that_is_named_is_there():
    named = set(re.findall(r'"static/([^"]+)"', HTML)) | {
        name for text in SCRIPTS.values() for name in re.findall(r'from "\./([^"]+)"', text)
    }
    assert named == set(FILES) - {"index.html"}


def test_every_element_that_a_script_names_is_there():
    for name, text in SCRIPTS.items():
        used = set(re.findall(r'\$\("([^"]+)"\)', text))
        used |= set(re.findall(r'(?:new Picture|onSeed|put)\("([^"]+)"', text))
        assert used <= set(IDS), name
    assert {"seed", "seed-next", "picture", "before"} <= set(IDS)
    assert len(IDS) == len(set(IDS))


def test_every_control_has_a_name_that_is_read_aloud():
    labelled = {attributes["for"] for tag, attributes, _ in ELEMENTS if tag == "label" and "for" in attributes}
    for tag, attributes, in_label in ELEMENTS:
        if tag in ("input", "select", "progress"):
            assert in_label or attributes.get("id") in labelled or "aria-label" in attributes, attributes
    keys = ("for", "aria-labelledby", "aria-describedby")
    referred = [name for _, attributes, _ in ELEMENTS for key in keys for name in (attributes.get(key) or "").split()]
    assert set(referred) <= set(IDS)


def test_every_key_of_the_help_is_one_that_the_page_knows():
    shown = re.findall(r"<kbd>([^<]+)</kbd>", HTML)
    names = {"←": "ArrowLeft", "→": "ArrowRight", "↑": "ArrowUp", "↓": "ArrowDown", "Space": " "}
    table = re.search(r"const KEYS = \{(.*?)\n\};", FILES["page.js"], re.DOTALL)
    known = {key.strip('"') for key in re.findall(r'^  ("[^"]+"|\w+):', table[1], re.MULTILINE)}
    assert {names.get(key, key) for key in shown} == known
