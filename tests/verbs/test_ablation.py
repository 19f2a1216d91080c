"""The papers' tables on one's own data: their rows, what is read from storage, their orders, and the page."""

import io
import json
import math
import re
from pathlib import Path

import pytest
import yaml
from PIL import Image

from stylegan import storage
from stylegan.config.file import load
from stylegan.data.sharding.write_shards import write_shards
from stylegan.data.shardset import ShardSet
from stylegan.data.sources.open_source import open_source
from stylegan.errors import ConfigError
from stylegan.evaluation.report import Report
from stylegan.images import png_bytes
from stylegan.pipeline.keys import stage_keys
from stylegan.pipeline.run import Run
from stylegan.verbs.ablation import Ablation, read_table, tally_words
from stylegan.verbs.ablation_page import draw_forgetting, forgetting_charts, read_strips, render
from stylegan.verbs.ablation_rows import TABLES, find_table, make_rows

CONFIGS = Path(__file__).parents[2] / "configs"
SHARDS = ShardSet(uri="x", fingerprint="f", num_images=70_000, resolutions=(1024,), label_names=(), num_rejected=0)
TREE = {
    "name": "tiny",
    "data": {"source": "digits", "resolution": 8, "channels": 1},
    "model": {"latent_size": 8, "mapping_layers": 8, "mapping_fmaps": 8, "fmap_base": 64, "fmap_max": 8},
    "training": {"start_resolution": 8, "batch": 4, "total_kimg": 2, "fade_kimg": 0.1, "stable_kimg": 0.1},
    "evaluation": {"metrics": ["fid"]},
    "snapshots": {"grid": 4},
}


@pytest.fixture
def config(tmp_path):
    """The file of a tiny config whose images are sharded."""
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(TREE | {"storage": {"root": str(tmp_path / "root")}}))
    found = load(path)
    write_shards(open_source(found.data), found.data, found.storage.root)
    return str(path)


def shards_of(config) -> ShardSet:
    found = load(config)
    return write_shards(open_source(found.data), found.data, found.storage.root)


def finish(config, runs, values, *, half=0.1, curves=None, blocks=0):
    """Write the reports of trainings: by row, a FID for each seed, with intervals of `half`; `curves` by row and seed.

    Each of the `blocks` of D recognises 0.1 less than the layer before it.
    """
    shards = shards_of(config)
    for one in runs:
        if one.seed < len(values.get(one.row, ())):
            run, value = Run(one.child.config, shards), values[one.row][one.seed]
            report = Report(
                protocol="p",
                dataset_fingerprint=shards.fingerprint,
                checkpoint_uri=f"{run.stage_uri(run.stages[-1])}/checkpoint-{one.row}-{one.seed}",
                metrics={"fid_classifier": value, "classifier_accuracy": 1.0},
                intervals={"fid_classifier": (value - half, value + half)} if half else {},
                protocols={"fid_classifier": "p"},
                curves={"mixing": [{"latents": n, "fid": n * value} for n in (1, 2, 3, 4)]},
            )
            storage.write_json(f"{run.uri}/report.json", report.model_dump(mode="json"))
        if curves and one.row in curves:
            run = Run(one.child.config, shards)
            rows = [
                {
                    "nimg": 1000 * (n + 1),
                    "resolution": 8,
                    "metrics": {"probe/accuracy": value}
                    | {f"probe/accuracy/block{b}": value - b / 10 for b in range(1, blocks + 1)},
                }
                for n, value in enumerate(curves[one.row][one.seed])
            ]
            storage.write_bytes(
                f"{run.stage_uri(run.stages[-1])}/stats.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode()
            )


def table1(config, values, *, seeds=3, rows="bcf", **options) -> Ablation:
    """Return Table 1 with some rows that have reached these FIDs."""
    table = find_table("table1")
    runs = make_rows(table, config, rows=list(rows), seeds=seeds)
    finish(config, runs, values, **options)
    return read_table(table, load(config), runs)


def orders(found: Ablation) -> dict[str, bool | None]:
    return {f"{order.first}{order.second}": order.agrees for order in found.orders}


# --- rows -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in TABLES if name != "ssgan"])
def test_rows_of_ffhq_have_the_stages_of_the_shipped_configs(name):
    """So a row that was trained as a shipped config is found, and both say the same."""
    table = find_table(name)
    runs = make_rows(table, str(CONFIGS / "ffhq-1024.yaml"), seeds=1)
    assert [one.row for one in runs] == list(table.rows)
    for one in runs:
        shipped = load(CONFIGS / f"ablations/{one.row}.yaml")
        assert stage_keys(one.child.config, SHARDS) == stage_keys(shipped, SHARDS)
        assert set(shipped.evaluation.metrics) <= set(one.child.config.evaluation.metrics)


def test_the_tables_have_every_shipped_row_and_no_other():
    rows = {row for name in TABLES if name != "ssgan" for row in find_table(name).rows}
    assert rows == {path.stem for path in (CONFIGS / "ablations").glob("*.yaml")}


def test_rows_of_cifar_have_the_stages_of_the_shipped_config_with_and_without_rotation():
    shards = SHARDS.model_copy(update={"resolutions": (32,), "label_names": ("a", "b")})
    path = CONFIGS / "ssgan-cifar10.yaml"
    runs = {one.row: one.child.config for one in make_rows(find_table("ssgan"), str(path), seeds=1)}
    assert stage_keys(runs["ssgan"], shards) == stage_keys(load(path), shards)
    assert stage_keys(runs["gan"], shards) == stage_keys(load(path, ["training.rotation=null"]), shards)
    conditional = load(path, ["training.rotation=null", "model.conditional=true"])
    assert stage_keys(runs["conditional"], shards) == stage_keys(conditional, shards)


ROWS_OF_SSGAN = {
    "gan": "cifar10-uncond",
    "ssgan": "cifar10-ss",
    "ssgan-sbn": "cifar10-ss-sbn",
    "conditional": "cifar10-cond",
    "rotation-only": "rotation-only",
    "alpha-decay": "cifar10-alpha-decay",
}


@pytest.mark.parametrize("base", ["cifar10-uncond", "cifar10-ss-sbn", "cifar10-alpha-decay"])
def test_rows_of_a_resnet_have_the_stages_of_the_configs_of_ssgan(base):
    shards = SHARDS.model_copy(update={"resolutions": (32,), "label_names": ("a", "b")})
    runs = make_rows(find_table("ssgan", "resnet"), str(CONFIGS / f"ssgan/{base}.yaml"), seeds=1)
    assert [one.row for one in runs] == list(ROWS_OF_SSGAN)
    for one in runs:
        shipped = load(CONFIGS / f"ssgan/{ROWS_OF_SSGAN[one.row]}.yaml")
        assert stage_keys(one.child.config, shards) == stage_keys(shipped, shards), one.row
        assert one.child.config.evaluation == shipped.evaluation
    assert len({stage_keys(one.child.config, shards) for one in runs}) == 6


def test_the_figures_of_ssgan_stand_beside_rows_that_have_some(tmp_path):
    """The paper orders those of CIFAR-10; a fading rotation loss and the baseline without a GAN it does not."""
    path = tmp_path / "resnet.yaml"
    overrides = ["data.source=digits", "data.channels=1", f"storage.root={tmp_path}/root", "training.total_kimg=1"]
    path.write_text(f"base: {CONFIGS}/ssgan/cifar10-uncond.yaml\n")
    settings, table = load(path, overrides), find_table("ssgan", "resnet")
    write_shards(open_source(settings.data), settings.data, settings.storage.root)
    runs = make_rows(table, str(path), overrides, seeds=1)
    found = read_table(table, settings, runs)
    assert [row.label for row in found.rows][-2:] == [
        "rotation-only: rotation loss alone, without a GAN (Gidaris et al. 2018)",
        "alpha-decay: SS-GAN whose rotation loss of G fades away",
    ]
    assert [row.cell(("fid", 1)).paper.get("CIFAR-10") for row in found.rows] == [
        19.73,
        17.11,
        15.65,
        15.60,
        None,
        None,
    ]
    assert {(one.first, one.second) for one in found.orders if one.metric == "fid"} == {
        ("ssgan", "gan"),
        ("ssgan-sbn", "gan"),
        ("conditional", "gan"),
        ("ssgan-sbn", "ssgan"),
        ("conditional", "ssgan"),
        ("conditional", "ssgan-sbn"),
    }
    assert not any("StyleGAN" in note for note in found.notes)


def test_the_other_tables_have_no_rows_of_a_resnet():
    with pytest.raises(
        ConfigError, match=r"^table1 with model\.architecture=resnet: [^\n]* the table of these is ssgan$"
    ):
        find_table("table1", "resnet")


def test_a_training_is_a_model_of_its_own_with_the_next_seed(config):
    """Else a row would be judged against the model in use."""
    runs = make_rows(find_table("table1"), config, ["seed=5", "registry.name=in-use"], rows=["b", "a"], seeds=2)
    assert [(one.row, one.seed, one.child.label) for one in runs] == [
        ("a", 5, "a, seed=5"),
        ("a", 6, "a, seed=6"),
        ("b", 5, "b, seed=5"),
        ("b", 6, "b, seed=6"),
    ]
    assert {one.child.config.model_name for one in runs} == {"tiny-table1-a", "tiny-table1-b"}
    assert [one.child.config.seed for one in runs] == [5, 6, 5, 6]
    again = load(config, runs[0].child.overrides)
    assert again == runs[0].child.config  # what the printed command would run


def test_row_a_takes_its_share_of_the_whole_training(config):
    (one,) = make_rows(find_table("table1"), config, rows=["a"], seeds=1)
    assert one.child.config.training.total_kimg == 0.96
    assert one.child.config.resolutions == (4, 8)
    (one,) = make_rows(
        find_table("table1"),
        config,
        ["training.total_kimg=null", "training.stable_kimg={4: 0.1, 8: 10}"],
        rows=["a"],
        seeds=1,
    )
    assert one.child.config.training.total_kimg == 4.8


def test_a_row_measures_what_its_table_needs_and_what_it_can(config):
    """A traditional generator has no styles to mix."""
    asked = ["evaluation.metrics=kid,fid_mixing", "registry.gate.metric=kid"]
    runs = {one.row: one.child.config for one in make_rows(find_table("table4"), config, asked, seeds=1)}
    paths = ("fid", "ppl_zfull", "ppl_wfull", "ppl_zend", "ppl_wend")
    assert runs["style-8"].evaluation.metrics == ("kid", "fid_mixing", *paths)
    assert runs["traditional-8"].evaluation.metrics == ("kid", *paths)


@pytest.mark.parametrize(
    ("name", "overrides", "options", "said"),
    [
        ("table1", [], {"rows": ["a", "g"]}, "--rows g: table1 has no such row; its rows are a,b,c,d,e,f"),
        ("table1", [], {"seeds": 0}, "--seeds 0: must be from 1 to 166"),
        ("table1", [], {"rows": []}, "--rows: names no row; the rows of table1 are a,b,c,d,e,f"),
        ("table1", ["training.total_kimg=0.3"], {}, "row a of table1: .*training.total_kimg=0.144.*--rows b,c,d,e,f"),
        ("ssgan", ["data.labels=none"], {}, "row conditional of ssgan: .*needs labels.*--rows gan,ssgan"),
    ],
)
def test_a_table_that_cannot_be_made_is_one_line_with_the_cure(config, name, overrides, options, said):
    with pytest.raises(ConfigError, match=said):
        make_rows(find_table(name), config, overrides, **options)


# --- orders -----------------------------------------------------------------------------------------------------------


def test_a_pair_is_decided_beyond_the_spread_over_seeds_and_no_sooner(config):
    """In the paper f is better than c, and c than b. Here f and c overlap, and b is far better than both."""
    found = table1(config, {"b": [10.0, 10.3, 9.8], "c": [20.0, 21.5, 19.0], "f": [18.9, 19.6, 20.9]})
    assert orders(found) == {"cb": False, "fb": False, "fc": None}
    near = next(order for order in found.orders if order.agrees is None)
    assert near.why == "within the spread over seeds"
    assert near.gain == pytest.approx(0.3667, abs=1e-3)
    assert near.bound > near.gain
    assert tally_words(found.orders) == "2 of 3 pairs decided: 0 as in the paper, 2 the other way round"
    cell = found.rows[0].cell(("fid", 1))
    assert cell.mean == pytest.approx(10.0333, abs=1e-3)
    assert cell.spread == pytest.approx(0.2517, abs=1e-3)
    assert cell.interval == pytest.approx((10.0333 - 0.1 / math.sqrt(3), 10.0333 + 0.1 / math.sqrt(3)), abs=1e-3)


def test_the_bound_of_the_spread_is_that_of_welch(config):
    from scipy.stats import ttest_ind_from_stats

    found = table1(config, {"b": [10.0, 10.3, 9.8], "c": [20.0, 21.5, 19.0]}, rows="bc", half=0)
    (order,) = found.orders
    spread = [cell.spread for cell in (row.cell(("fid", 1)) for row in found.rows)]
    at_bound = ttest_ind_from_stats(order.bound, spread[0], 3, 0.0, spread[1], 3, equal_var=False).pvalue
    assert at_bound == pytest.approx(0.05, abs=1e-6)


def test_wide_intervals_leave_a_pair_open_that_the_seeds_would_decide(config):
    found = table1(config, {"b": [10.0, 10.01, 10.02], "c": [9.0, 9.01, 9.02]}, rows="bc", half=5)
    assert [(order.agrees, order.why) for order in found.orders] == [(None, "within the chance of the evaluations")]
    narrow = table1(config, {"b": [10.0, 10.01, 10.02], "c": [9.0, 9.01, 9.02]}, rows="bc", half=0.1)
    assert orders(narrow) == {"cb": True}


def test_one_training_each_is_decided_by_the_intervals_alone_and_says_so(config):
    found = table1(config, {"b": [10.0], "c": [9.0]}, rows="bc", seeds=1)
    assert orders(found) == {"cb": True}
    assert any("one training each" in note for note in found.notes)
    none = table1(config, {"b": [10.0], "c": [9.0]}, rows="bc", seeds=1, half=0)
    assert [(order.agrees, order.why) for order in none.orders] == [
        (None, "one training each, and the value has no interval")
    ]


def test_what_is_missing_or_not_finite_decides_nothing(config):
    found = table1(config, {"b": [10.0, 10.1], "c": [math.inf, 9.0, 9.1]})
    assert {order.first + order.second: order.why for order in found.orders} == {
        "cb": "the value of c is not a finite number",
        "fb": "f is not measured",
        "fc": "f is not measured",
    }
    assert found.missing == ("b, seed=2", "f, seed=0", "f, seed=1", "f, seed=2")
    text = json.dumps(found.model_dump(mode="json"), allow_nan=False)
    assert json.loads(text)["rows"][1]["cells"][0]["mean"] == "Infinity"


def test_an_order_that_the_papers_own_data_sets_dispute_is_marked(config):
    """On FFHQ c is better than d, on CelebA-HQ d than c."""
    found = table1(config, {"c": [10.0], "d": [11.0], "b": [12.0]}, rows="bcd", seeds=1)
    assert {order.first + order.second: order.disputed for order in found.orders} == {
        "cb": False,
        "db": False,
        "cd": True,
    }


def test_values_of_other_data_are_said_not_to_compare(config):
    found = table1(config, {"b": [10.0]}, rows="b", seeds=1)
    assert not found.comparable
    assert found.statement == (
        "The paper's values are of FFHQ at 1024x1024 and CelebA-HQ at 1024x1024, ours of digits at 8x8 (other network, other "
        "settings, other data): absolute values do not compare, only the order of rows does."
    )
    assert found.rows[0].cells[0].paper == {"FFHQ": 5.25, "CelebA-HQ": 6.11}
    assert found.rows[0].kimg == 2.0


def test_settings_that_are_not_those_of_stylegan_are_named(config):
    table = find_table("table1")
    changed = load(config, ["model.mapping_layers=2"])
    runs = make_rows(table, config, ["model.mapping_layers=2"], rows=["f"], seeds=1)
    notes = read_table(table, changed, runs).notes
    assert any("model.mapping_layers=2 (StyleGAN: 8)" in note for note in notes)
    assert not any("StyleGAN" in note for note in table1(config, {}, rows="f").notes)


def test_mixed_latents_are_columns_of_their_own(config):
    table = find_table("table2")
    runs = make_rows(table, config, rows=["mixing-000", "mixing-090"], seeds=2)
    finish(config, runs, {"mixing-000": [9.0, 9.1], "mixing-090": [3.0, 3.1]})
    found = read_table(table, load(config), runs)
    assert found.columns() == [("fid", 1), ("fid_mixing", 2), ("fid_mixing", 3), ("fid_mixing", 4)]
    assert found.rows[0].cell(("fid_mixing", 3)).paper == {"FFHQ": 12.88}
    assert found.rows[0].cell(("fid_mixing", 3)).mean == pytest.approx(27.15)
    assert all(order.first == "mixing-090" for order in found.orders)


def test_the_forgetting_curve_ends_in_a_value_of_its_own(config):
    table, falling, steady = find_table("ssgan"), [0.9, 0.5], [0.9, 0.8]
    runs = make_rows(table, config, rows=["gan", "ssgan"], seeds=2)
    curves = {"gan": [falling, [0.9, 0.51]], "ssgan": [steady, [0.9, 0.81]]}
    finish(config, runs, {"gan": [5.0, 5.1], "ssgan": [5.1, 5.0]}, curves=curves)
    found = read_table(table, load(config), runs)
    assert {order.metric: (order.first, order.agrees) for order in found.orders} == {
        "fid": ("ssgan", None),
        "probe/accuracy": ("ssgan", True),
    }
    assert found.curves["gan"][0] == [(1.0, 0.9), (2.0, 0.5)]
    (chart,) = forgetting_charts(found).values()
    assert found.layers == {}
    assert [curve.name for curve in chart.curves][:2] == ["gan", "ssgan"]
    assert [curve.thin for curve in chart.curves] == [False, False, True, True, True, True]
    assert [curve.colour for curve in chart.curves] == [1, 2, 1, 1, 2, 2]
    assert chart.curves[0].last == pytest.approx(0.505)
    assert found.orders[0].paper == (17.11, 19.73)
    assert found.orders[0].disputed  # on CelebA-HQ the rotation loss makes it worse
    assert found.orders[1].paper is None
    assert any("configs/ssgan/ has the paper's" in note for note in found.notes)


def test_every_block_has_a_chart_on_the_same_axis_and_one_picture_has_all(config):
    table = find_table("ssgan")
    runs = make_rows(table, config, rows=["gan", "ssgan"], seeds=2)
    curves = {"gan": [[0.9, 0.5], [0.9, 0.6]], "ssgan": [[0.9, 0.8], [0.9, 0.85]]}
    finish(config, runs, {"gan": [5.0, 5.1], "ssgan": [5.1, 5.0]}, curves=curves, blocks=2)
    found = read_table(table, load(config), runs)
    assert found.curves["gan"] == {0: [(1.0, 0.9), (2.0, 0.5)], 1: [(1.0, 0.9), (2.0, 0.6)]}
    assert found.layers["block 2"]["gan"][0] == [(1.0, pytest.approx(0.7)), (2.0, pytest.approx(0.3))]
    assert Ablation.model_validate_json(found.model_dump_json()) == found
    charts = forgetting_charts(found)
    assert list(charts) == ["last features", "block 1", "block 2"]
    assert len({chart.y_ticks for chart in charts.values()}) == 1
    assert draw_forgetting(found).size == (2 * (3 * 400 + 28), 2 * 335)
    page = render(table, found)
    assert page.count("<figcaption>Block ") == 2
    assert "Accuracy of the probe over kimg, block 2" in page


def test_without_a_probe_there_is_no_picture(config):
    found = table1(config, {"b": [10.0]}, rows="b", seeds=1)
    assert draw_forgetting(found) is None


# --- page -------------------------------------------------------------------------------------------------------------


def test_the_page_has_the_paper_beside_ours_the_pairs_and_what_compares(config):
    table = find_table("table1")
    runs = make_rows(table, config, rows=["b", "c", "f"], seeds=3)
    finish(config, runs, {"b": [10.0, 10.3, 9.8], "c": [20.0, 21.5, 19.0], "f": [8.0, 8.1]})
    page = render(table, read_table(table, load(config), runs))
    text = " ".join(re.sub(r"<[^>]+>", " ", page.partition("</style>")[2]).split())
    assert "B: tuned, traditional generator 5.250 6.110 10.03 ± 0.252 (3) 9.976 to 10.09 2" in text
    assert "only the order of rows does." in text
    assert "1 trainings have no finished evaluation: f, seed=2" in text
    assert "b no yes" in text  # c is worse than b here, f better
    assert text.count("Paper, FFHQ") == 2  # the chart, and the column
    assert page.count('class="marker series-1"') == 8 + 6  # ours, and two data sets of the paper
    assert "<script" not in page


def test_the_page_shows_the_first_images_of_each_row(config):
    table = find_table("table1")
    runs = make_rows(table, config, rows=["b", "c"], seeds=2)
    shards = shards_of(config)
    run = Run(runs[1].child.config, shards)  # the second seed of b
    sheet = Image.new("L", (1600, 1600), 255)
    storage.write_bytes(f"{run.stage_uri(run.stages[-1])}/samples/000002.png", png_bytes(sheet))
    strips = read_strips(load(config), runs)
    assert list(strips) == ["b"]
    page = render(table, read_table(table, load(config), runs), strips=strips)
    assert page.count("data:image/webp;base64,") == 1
    assert Image.open(io.BytesIO(strips["b"])).size == (720, 360)  # two rows of four
