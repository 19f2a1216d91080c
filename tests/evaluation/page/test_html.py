"""The page of a report."""

import base64
import io
import math
from html.parser import HTMLParser

import pytest
from PIL import Image

from stylegan.data.dataset_card import DatasetCard
from stylegan.evaluation.page.html import page_format, render
from stylegan.evaluation.page.published import compare
from stylegan.evaluation.report import Report
from stylegan.images import animation_bytes, png_bytes

EVIL = "<script>alert('x')</script>&\"'"
VOID = {"meta", "img", "source", "br"}


class Page(HTMLParser):
    """The elements of a page with their attributes, its text by section, its table rows. Unbalanced tags fail."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.sections, self.rows = [], [], {}, []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("th", "td"):
            self.rows[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "h2" in self.open:
            self.sections[data] = ""
        elif self.sections and "style" not in self.open:
            self.sections[list(self.sections)[-1]] += data
        if {"th", "td"} & set(self.open):
            self.rows[-1][-1] += data

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    def row(self, first):
        """Return the other cells of the first table row whose first cell is this, or begins with this and a comma."""
        row = next(cells for cells in self.rows if cells and (cells[0] == first or cells[0].startswith(f"{first}, ")))
        return [cell.strip() for cell in row[1:]]


def picture(size=8):
    return png_bytes(Image.new("L", (size, size)))


def bare(**more):
    return Report(protocol="p", dataset_fingerprint="f", checkpoint_uri="c", **({"metrics": {}} | more))


def whole():
    return Report(
        protocol="protocol-of-all",
        dataset_fingerprint="fingerprint-of-reals",
        checkpoint_uri="s3://bucket/checkpoint",
        metrics={
            "recall_classifier": 0.4,
            "fid_classifier": 12.3456,
            "is_std_classifier": 0.05,
            "classifier_accuracy": 0.98,
        },
        intervals={"fid_classifier": (12.0, 12.7)},
        protocols={"fid_classifier": "protocol-of-fid"},
        settings={"num_images": 1797, "networks": {"classifier": "abcd"}},
        attributes={
            "smiling": {"entropy_w": 0.1, "entropy_z": 0.2, "share": 0.5, "error": None},
            "bald": {"entropy_w": None, "entropy_z": None, "share": 0.0, "error": "all 10 confident images lack it"},
            "male": {"entropy_w": 0.0, "entropy_z": 0.0, "share": 0.5, "error": None},
            "young": {"entropy_w": 0.3, "entropy_z": 0.4, "share": 0.25, "error": None},
        },
        curves={
            "truncation": [
                {"psi": psi, "fid": 20 * psi, "precision": 1 - psi / 2, "recall": psi / 2} for psi in (0.5, 0.7, 1.0)
            ],
            "mixing": [{"latents": 1.0, "fid": 12.3}, {"latents": 2.0, "fid": 15.9}],
        },
        skipped={"separability_w_classifier": "1 of 4 attributes cannot be scored"},
    )


@pytest.fixture(scope="module")
def text():
    images = {name: picture() for name in ("worst", "truncation", "grid", "best")}
    return render(
        whole(), images=images, published=compare(whole()), title="quickstart, version 2", facts={"Run": "run-7"}
    )


@pytest.fixture(scope="module")
def page(text):
    return Page(text)


def test_it_has_all_sections(page):
    expected = [
        "Images",
        "Metrics",
        "Best and worst images",
        "Truncation",
        "Style mixing",
        "Separability by attribute",
        "Published figures",
        "Details",
    ]
    assert list(page.sections) == expected


def card(**changes):
    facts = {
        "source": "/images",
        "fingerprint": "0123abcd",
        "num_images": 1200,
        "resolution": 64,
        "channels": 3,
        "crop": "wide",
        "resize_filter": "lanczos",
        "num_bytes": 12_345_678,
        "counted": "classes",
        "counts": {"cat": 300, EVIL: 900, "none": 0},
        "rejected": {"duplicate": 3, "truncated": 1},
        "examples": {"duplicate": ["a.png", EVIL], "truncated": ["c.png"]},
        "num_duplicates": 3,
        "widths": {"min": 20, "median": 64.5, "max": 2000},
        "heights": {"min": 64, "median": 64, "max": 64},
        "num_upscaled": 12,
        "mean_of": 1200,
        "mean_png": base64.b64encode(picture()).decode(),
    }
    return DatasetCard(**facts | changes)


def test_the_data_set_is_described():
    """The page shows the card's numbers, the mean image, the classes by size, and examples of rejected images."""
    text = render(bare(), data=card())
    page = Page(text)
    assert list(page.sections) == ["Metrics", "Data set", "Details"]
    section = page.sections["Data set"]
    for words in (
        "0123abcd",
        "1,200 at 64x64, RGB",
        "3 classes",
        "width 20 to 2,000 (median 64.5), height 64 pixels; 12 (1.0%) were enlarged",
        "central 4:3 part between black bars, resized with the lanczos filter",
        "4, of which 3 have the same bytes as another image",
        "12.3 MB in all resolutions",
    ):
        assert words in section
    assert page.row("cat")[:2] == ["300", "25.0%"]
    names = [row[0] for row in page.rows if row]
    assert names.index(EVIL) < names.index("cat") < names.index("none")
    assert page.row("duplicate") == ["3", f"a.png, {EVIL}"]
    (mean,) = page.all("img")
    assert mean["src"] == f"data:image/png;base64,{card().mean_png}"
    assert mean["alt"] == "Mean of 1,200 images"
    assert EVIL not in text
    widths = [float(attributes["style"].removeprefix("width: ").removesuffix("%")) for attributes in page.all("i")]
    assert widths == [100, 33.33, 0]


def test_a_data_set_without_labels_or_rejects_is_short():
    page = Page(render(bare(), data=card(counted=None, counts={}, rejected={}, examples={}, num_upscaled=0)))
    assert [row for row in page.rows if row] == []
    assert "none" in page.sections["Data set"]


def test_of_many_attributes_the_most_frequent_and_the_rarest_are_listed():
    page = Page(render(bare(), data=card(counted="attributes", counts={f"number {k}": k for k in range(100)})))
    names = [row[0] for row in page.rows if row]
    assert names[1:3] == ["number 99", "number 98"]
    assert names[60] == "number 0"
    assert "40 between them are not listed" in page.sections["Data set"]


def test_it_leaves_out_what_was_not_measured():
    page = Page(render(bare()))
    assert list(page.sections) == ["Metrics", "Details"]
    assert "Nothing was measured." in page.sections["Metrics"]
    assert page.all("svg") == []


def test_it_asks_for_nothing_from_anywhere(page, text):
    """Only links lead outside. Everything else is in the file, and a policy forbids browsers to load more."""
    assert {name for name, _ in page.elements} & {"script", "link", "iframe", "object", "video"} == set()
    assert all(attributes["src"].startswith("data:image/png;base64,") for attributes in page.all("img"))
    assert "url(h" not in text
    assert "@import" not in text
    policy = [meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]
    outside = [
        value
        for tag, attributes in page.elements
        for value in attributes.values()
        if tag != "a" and value and "//" in value
    ]
    assert outside == []


def test_its_head_says_what_was_measured_and_its_end_the_details(text):
    head, end = text[text.index("<header>") : text.index("</header>")], text[text.index("<h2>Details</h2>") :]
    for value in ("quickstart, version 2", "run-7"):
        assert value in head
    for value in ("s3://bucket/checkpoint", "fingerprint-of-reals", "protocol-of-all"):
        assert value in end


def test_its_first_lines_name_its_format(text):
    assert f'content="{page_format()}"' in text[:500]


def test_a_metric_has_value_interval_direction_and_its_own_protocol(page):
    assert page.row("Fréchet distance (FID)") == [
        "12.35",
        "12.00 to 12.70",
        "fid_classifier",
        "protocol-of-fid",
    ]
    assert page.row("Recall") == ["0.400", "\N{EN DASH}", "recall_classifier", "protocol-of-all"]
    (fid,) = [row[0] for row in page.rows if row and row[0].startswith("Fréchet distance (FID), classifier ↓")]
    assert "How far the generated images are from the real ones" in fid


def test_a_value_that_means_trouble_is_first_of_all_and_at_its_row(page):
    """A page without such a value says so."""
    warning = "Recall is 0.010: the images have few varieties"
    text = render(bare(metrics={"recall_classifier": 0.01}), images={"grid": picture()})
    assert text.index(warning) < text.index("<img")
    assert text.count(warning) == 2
    fine = "No value is in the range that means trouble."
    assert fine not in text
    assert fine in render(bare(metrics={"recall_classifier": 0.4}))


def test_metrics_stand_in_their_usual_order(page):
    names = [row[0].partition(",")[0] for row in page.rows if row]
    assert names.index("Fréchet distance (FID)") < names.index("Recall")


def test_facts_about_the_measurement_are_no_metrics_of_the_model(page):
    section = page.sections["Metrics"]
    assert section.index("Recall") < section.index("About the measurement") < section.index("classifier accuracy")
    assert "classifier accuracy" not in {row[0] for row in page.rows if row}


def test_what_was_skipped_says_why(page):
    assert ["separability_w_classifier", "1 of 4 attributes cannot be scored"] in [row[1:] for row in page.rows]


def test_images_are_in_the_file_as_they_are(page):
    sources = [attributes["src"].partition(",")[2] for attributes in page.all("img")]
    assert [base64.b64decode(source) for source in sources] == [picture()] * 4


def test_every_picture_is_described(page):
    descriptions = [attributes["alt"] for attributes in page.all("img")]
    assert len(set(descriptions)) == 4
    assert "real images in the left half" in descriptions[0]
    charts = page.all("svg")
    assert len(charts) == 2
    assert all(chart["role"] == "img" and "table below" in chart["aria-label"] for chart in charts)


def test_small_images_stay_sharp_and_large_ones_are_smoothed():
    sheets = [Page(render(bare(), images={"grid": picture(size)})).all("img")[0].get("class") for size in (64, 2048)]
    assert sheets == ["sharp", None]


def test_an_animation_moves_on_screens_only():
    """Paper, and people who want nothing to move, get its last frame; a damaged animation is left out."""
    frames = [Image.new("L", (20, 10), shade) for shade in (0, 200)]
    page = Page(render(bare(), growth=animation_bytes(frames)))
    (image,), (still,) = page.all("img"), page.all("source")
    assert image["src"].startswith("data:image/webp;base64,")
    assert still["media"] == "print, (prefers-reduced-motion: reduce)"
    png = base64.b64decode(still["srcset"].removeprefix("data:image/png;base64,"))
    with Image.open(io.BytesIO(png)) as last:
        assert abs(last.convert("L").getpixel((5, 5)) - 200) <= 2
    assert Page(render(bare(), growth=b"none")).all("img") == []


def test_another_picture_is_shown_too():
    (image,) = Page(render(bare(), images={"more_samples": picture()})).all("img")
    assert image["alt"] == "Images: more samples"


def test_a_picture_that_is_no_png_is_refused():
    with pytest.raises(ValueError, match="'grid' is no PNG"):
        render(bare(), images={"grid": b"GIF89a" + bytes(50)})


def test_every_cell_of_a_head_says_what_it_heads(page):
    assert all(attributes.get("scope") in ("col", "row", "rowgroup") for attributes in page.all("th"))


def test_curves_are_tables_too(page):
    assert page.row("0.7") == ["14.00", "0.650", "0.350"]
    assert page.row("2") == ["15.90"]


def test_charts_have_lines_markers_and_labels(page):
    """FID has circles; precision and recall have circles and squares, so that they differ without colours too."""
    assert len(page.all("polyline")) == 3
    assert len(page.all("circle")) == 6
    assert len([attributes for attributes in page.all("rect") if "marker" in attributes["class"]]) == 3
    section = page.sections["Truncation"]
    for words in (
        "FID at ψ = 0.7: 14.00",
        "Precision at ψ = 0.5: 0.750",
        "Recall at ψ = 1: 0.500",
        "●Precision■Recall",
    ):
        assert words in section


def test_the_style_sheet_colours_every_part_of_a_chart(page, text):
    """A chart has no colours of its own: it follows light mode, dark mode and print."""
    style = text[text.index("<style>") : text.index("</style>")]
    parts = ("polyline", "circle", "rect", "line", "text")
    for attributes in (attributes for part in parts for attributes in page.all(part)):
        assert not {"fill", "stroke", "style"} & attributes.keys()
        assert all(f".{name}" in style for name in attributes.get("class", "").split())


@pytest.mark.parametrize(("value", "bars"), [(0.5, 1), (0.4, 0)])
def test_a_chart_shows_the_interval_of_the_metric_that_is_its_last_point(value, bars):
    """The interval of a metric with another value, from another evaluation, is not that of the curve."""
    report = whole().model_copy(
        update={"metrics": {"recall_classifier": value}, "intervals": {"recall_classifier": (0.4, 0.6)}}
    )
    text = render(report)
    page = Page(text)
    assert len([attributes for attributes in page.all("path") if "interval" in attributes["class"]]) == bars
    assert ("The bars at ψ = 1 are 95 % intervals." in text) == bool(bars)


def test_a_curve_without_precision_has_one_chart():
    rows = [{"psi": 0.5, "fid": 3.0, "precision": math.nan}, {"psi": 1.0, "fid": 2.0, "precision": math.nan}]
    page = Page(render(bare(curves={"truncation": rows})))
    assert len(page.all("svg")) == 1
    assert page.row("0.5") == ["3.000", "not a number"]


def test_attributes_from_the_least_separable_to_those_that_failed(page):
    names = [row[0] for row in page.rows if row and row[0] in whole().attributes]
    assert names == ["young", "smiling", "male", "bald"]
    assert page.row("bald") == ["0.0%", "Not measured: all 10 confident images lack it"]
    assert "it is missing because 1 could not be measured" in page.sections["Separability by attribute"]


def test_bars_are_as_long_as_their_values(page):
    widths = [attributes["style"] for attributes in page.all("i")]
    assert widths == [
        "width: 75.00%",
        "width: 100.00%",
        "width: 25.00%",
        "width: 50.00%",
        "width: 0.00%",
        "width: 0.00%",
    ]


def test_published_figures_that_do_not_compare_are_one_line_with_the_reasons(page):
    section = " ".join(page.sections["Published figures"].split())
    assert "published figures do not compare: " in section
    assert "1,797 generated images, not 50,000" in section
    assert "other images than FFHQ" in section
    assert not [row for row in page.rows if "4.40" in row]


def test_a_published_figure_that_compares_stands_beside_ours():
    rows = compare(whole())
    same = type(rows[0])(rows[0].published, "fid_inception", 4.5, (4.4, 4.6), ())
    text = render(whole(), published=[same, *rows[1:]])
    page = Page(text)
    (row,) = [[" ".join(cell.split()) for cell in row] for row in page.rows if row[-1] == "yes"]
    assert row[1:5] == ["4.500", "4.400 to 4.600", "4.40", "Tables 1, 2, 4 FFHQ 1024x1024"]
    assert "A Style-Based Generator Architecture" in page.sections["Published figures"]
    assert text.index("compare with ours") < text.index(f"{len(rows) - 1} published figures do not compare: ")
    assert "do not compare" not in render(whole(), published=[same])


def test_settings_by_their_dotted_names(page):
    assert "networks.classifier" in page.sections["Details"]
    assert "abcd" in page.sections["Details"]


def test_strings_are_never_markup():
    report = Report(
        protocol=EVIL,
        dataset_fingerprint=EVIL,
        checkpoint_uri=EVIL,
        metrics={EVIL: 1.0, f"fid_{EVIL}": 2.0},
        protocols={f"fid_{EVIL}": EVIL},
        settings={EVIL: {EVIL: EVIL}},
        attributes={EVIL: {"entropy_w": 0.1, "entropy_z": 0.1, "share": 0.1, "error": EVIL}},
        curves={
            "mixing": [{"latents": 1.0, EVIL: 1.0}],
            "truncation": [{"psi": 0.5, "fid": 1.0}, {"psi": 1.0, "fid": 1.0, EVIL: 3.0}],
        },
        skipped={EVIL: EVIL},
    )
    text = render(report, images={EVIL: picture()}, title=EVIL, facts={EVIL: EVIL}, published=compare(report))
    assert "<script" not in text
    page = Page(text)
    assert EVIL in page.sections["Metrics"]
    assert {name for tag, attributes in page.elements for name in attributes if name.startswith("on")} == set()


def test_it_is_the_same_every_time():
    assert render(whole(), published=compare(whole())) == render(whole(), published=compare(whole()))
