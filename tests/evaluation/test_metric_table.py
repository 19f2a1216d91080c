"""The table of metrics agrees with the config and the meters, and a row is all that the rest of the program needs."""

import pkgutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest

from stylegan.config.checks import check
from stylegan.config.file import build
from stylegan.config.sections import EvaluationConfig, GateConfig, Metric, QuickMetric
from stylegan.data.shardset import ShardSet
from stylegan.evaluation.engine import evaluate, evaluate_images
from stylegan.evaluation.features.spaces import ROLES, Network, Spaces
from stylegan.evaluation.generate import GENERATED, Pass
from stylegan.evaluation.meters import Context, Meter, Outcome, References, make_meter
from stylegan.evaluation.metric_table import (
    METRICS,
    Direction,
    MetricFacts,
    ReportedValue,
    Role,
    better,
    describe,
    rank,
    split_key,
)
from stylegan.evaluation.page.html import render
from stylegan.evaluation.report import Report
from stylegan.evaluation.work import Products
from stylegan.networks.generator import Generator
from stylegan.networks.weights import load_generator
from stylegan.pipeline.plan import count_generated
from stylegan.registry.gate import judge

MOST_COMPARED = 200  # images that the metric of the tests below compares


class CmmdMeter(Meter):
    """cmmd: the squared maximum mean discrepancy of a Gaussian kernel, over fewer images than FID takes."""

    def __init__(self, context: Context, metric: Metric) -> None:
        super().__init__(context, metric)
        context.spaces["pooled"]
        self.features: list[np.ndarray] = []

    @property
    def wants(self) -> dict[Pass, dict[str, int]]:
        return {GENERATED: {"pooled": min(self.context.num_images, MOST_COMPARED)}}

    @property
    def needs(self) -> dict[Role, str]:
        return {"pooled": "features"}

    def add(self, source: Pass, products: Products) -> None:
        assert products.keys() == {"pooled"}  # its own products only
        self.features.append(products["pooled"])

    def outcome(self, references: References) -> Outcome:
        real, fake = references["pooled"].features, np.concatenate(self.features)
        assert len(fake) == min(self.context.num_images, MOST_COMPARED)
        return Outcome({"cmmd": kernel_mean(real, real) + kernel_mean(fake, fake) - 2 * kernel_mean(real, fake)})


def kernel_mean(a: np.ndarray, b: np.ndarray) -> float:
    """Return the mean of exp(-|x - y|^2 / (2 D)) over all pairs of [N, D] and [M, D] vectors."""
    squared = np.square(a[:, None].astype(np.float64) - b[None]).sum(axis=2)
    return float(np.exp(-squared / (2 * a.shape[1])).mean())


@pytest.fixture
def cmmd(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return `cmmd(better="lower", **changes)`, which puts a new metric into the table, or changes its row."""

    def register(better: Direction = "lower", **changes: object) -> None:
        row = MetricFacts(
            values={"cmmd": ReportedValue("Maximum mean discrepancy (CMMD)", better, "Another distance of two sets.")},
            roles=("pooled",),
            settings=("num_images", "num_reals"),
            meter=f"{__name__}:CmmdMeter",
            gate=("cmmd",),
            of_images=True,
            shared_images=lambda evaluation: min(evaluation.num_images, MOST_COMPARED),
        )
        monkeypatch.setitem(METRICS, "cmmd", replace(row, **changes))

    register()
    return register


def with_cmmd(evaluation: EvaluationConfig) -> EvaluationConfig:
    """Return settings for fid and the new metric, past the literal that names the metrics of a config."""
    return evaluation.model_copy(update={"metrics": ("fid", "cmmd")})


# --- a new metric ---


def test_a_row_is_enough_to_measure_a_new_metric_and_to_show_it(
    cmmd: Callable[..., None], measured: Report, shards: ShardSet, evaluation: EvaluationConfig, root: str
) -> None:
    """It may want fewer samples than fid does, which changes neither value; its title is on the page."""
    report = evaluate(measured.checkpoint_uri, shards, with_cmmd(evaluation), root=root)
    assert set(report.metrics) == {"fid_classifier", "cmmd_classifier", "classifier_accuracy"}
    assert report.metrics["fid_classifier"] == measured.metrics["fid_classifier"]
    assert report.metrics["cmmd_classifier"] > 1e-3
    assert report.skipped == {}

    changed = with_cmmd(evaluation).model_copy(update={"num_images": 280})
    other = evaluate(measured.checkpoint_uri, shards, changed, root=root)
    assert other.metrics["cmmd_classifier"] == report.metrics["cmmd_classifier"]
    assert other.protocols["cmmd_classifier"] != report.protocols["cmmd_classifier"]  # num_images is among its settings

    page = render(report)
    assert "Maximum mean discrepancy (CMMD)" in page
    assert page.index("Maximum mean discrepancy (CMMD)") > page.index("Fréchet distance (FID)")


def test_its_row_decides_whether_images_can_be_measured(
    cmmd: Callable[..., None], shards: ShardSet, evaluation: EvaluationConfig, root: str
) -> None:
    report = evaluate_images(shards, shards, with_cmmd(evaluation), root=root)
    assert report.metrics["cmmd_classifier"] == pytest.approx(0, abs=1e-9)  # reals against themselves
    cmmd(of_images=False)
    report = evaluate_images(shards, shards, with_cmmd(evaluation), root=root)
    assert report.skipped == {
        "cmmd_classifier": "needs a generator, and images are measured; give the URI of a checkpoint"
    }
    assert "fid_classifier" in report.metrics


def test_its_row_decides_whether_styles_are_needed(
    cmmd: Callable[..., None],
    shards: ShardSet,
    evaluation: EvaluationConfig,
    root: str,
    checkpoint: Callable[..., str],
) -> None:
    uri = checkpoint(styles=False, const_input=False)
    assert "cmmd_classifier" in evaluate(uri, shards, with_cmmd(evaluation), root=root).metrics
    cmmd(needs_styles=True)
    report = evaluate(uri, shards, with_cmmd(evaluation), root=root)
    assert report.skipped == {"cmmd_classifier": "this generator has no styles to mix (model.styles: false)"}


@pytest.mark.parametrize(("direction", "promoted"), [("lower", True), ("higher", False)])
def test_the_gate_compares_it_in_its_direction(cmmd: Callable[..., None], direction: Direction, promoted: bool) -> None:
    def report(uri: str, value: float) -> Report:
        metrics = {"fid_classifier": 1.0, "cmmd_classifier": value}
        return Report(protocol="p", dataset_fingerprint="f", checkpoint_uri=uri, metrics=metrics)

    cmmd(direction)
    gate = GateConfig(metric="cmmd")
    verdict = judge(report("new", 0.1), report("old", 0.2), gate, challenger_version="2", champion_version="1")
    assert verdict.promote == promoted
    assert "cmmd_classifier is 0.1 against 0.2" in verdict.reasons[0]


def test_a_config_may_gate_on_it_if_it_is_measured(cmmd: Callable[..., None]) -> None:
    config = build({"name": "t", "data": {"source": "digits", "resolution": 8}})
    gate = config.registry.gate.model_copy(update={"metric": "cmmd"})
    config = config.model_copy(update={"registry": config.registry.model_copy(update={"gate": gate})})
    with pytest.raises(ValueError, match=r"registry\.gate\.metric=cmmd: not among evaluation\.metrics="):
        check(config)
    check(config.model_copy(update={"evaluation": with_cmmd(config.evaluation)}))
    cmmd(gate=())  # as a curve
    with pytest.raises(ValueError, match=r"which the gate knows as \['fid'\]"):
        check(config.model_copy(update={"evaluation": with_cmmd(config.evaluation)}))


def test_a_plan_counts_its_images(cmmd: Callable[..., None]) -> None:
    """It may have images in the shared pass and in passes of its own."""
    alone = EvaluationConfig(num_images=150).model_copy(update={"metrics": ("cmmd",)})
    assert count_generated(alone) == 150
    assert count_generated(with_cmmd(EvaluationConfig(num_images=1000))) == 1000
    cmmd(own_images=lambda evaluation: 7)
    assert count_generated(with_cmmd(EvaluationConfig(num_images=1000))) == 1007


# --- the table itself ---


def test_the_table_and_the_config_have_the_same_metrics() -> None:
    assert METRICS.keys() == set(get_args(Metric))
    assert [name for name, facts in METRICS.items() if facts.quick] == list(get_args(QuickMetric))


@pytest.mark.parametrize("metric", METRICS)
def test_a_row_names_a_meter_and_settings_that_exist(metric: Metric) -> None:
    """Quick metrics are stored under the values of these fields alone. Only a style transfer is measured without a meter."""
    facts = METRICS[metric]
    assert issubclass(pkgutil.resolve_name(facts.meter), Meter) if facts.meter else metric == "transfer"
    fields = set(EvaluationConfig.model_fields) | (set() if facts.quick else {"truncated_layers"})
    assert set(facts.settings) | set(facts.interval_settings) <= fields
    assert facts.roles
    assert set(facts.roles) <= set(ROLES)


@pytest.mark.parametrize("metric", METRICS)
def test_a_gate_finds_the_values_that_it_may_ask_for(metric: Metric) -> None:
    facts = METRICS[metric]
    for name in facts.gate:
        assert any(value == name or value.startswith(f"{name}_") for value in facts.values)
        assert better(f"{name}_classifier") == next(iter(facts.values.values())).better


SHORT = 56  # columns of a terminal of 80 beside the widest title


@pytest.mark.parametrize("metric", METRICS)
def test_each_value_says_in_a_sentence_what_it_means(metric: Metric) -> None:
    """The part before the first semicolon fits into one line of a terminal."""
    for value in METRICS[metric].values.values():
        assert value.meaning[0].isupper()
        assert value.meaning.endswith(".")
        assert 0 < len(value.meaning.partition(";")[0]) <= SHORT, value.meaning


def test_no_two_metrics_report_the_same_value() -> None:
    values = [value for facts in METRICS.values() for value in facts.values]
    assert len(set(values)) == len(values)


@pytest.mark.parametrize("psi", [(0.5, 0.7), (0.5, 0.5, 1.0)])
@pytest.mark.parametrize("metric", [name for name in METRICS if name != "transfer"])
def test_a_plan_counts_the_images_that_the_meter_wants(
    metric: Metric, psi: tuple[float, ...], checkpoint: Callable[..., str]
) -> None:
    """A path length takes two images per sample. Without truncation an image is one of the shared pass."""
    evaluation = EvaluationConfig(metrics=(metric,), num_images=300, num_reals=300, psi=psi)
    with open(f"{checkpoint()}/generator.safetensors", "rb") as file:
        generator, _ = load_generator(file.read())
    meter = make_meter(metric, context_of(evaluation, generator))
    counts = [max(products.values()) * (2 if source.path else 1) for source, products in meter.wants.items()]
    assert sum(counts) == count_generated(evaluation)


def context_of(evaluation: EvaluationConfig, generator: Generator | None) -> Context:
    """Return the input of meters with one network for all roles."""
    networks = dict.fromkeys(ROLES, Network("classifier", ("uri",), "a" * 64, 64))
    return Context(evaluation, Spaces(networks, embedded="classifier"), generator, num_images=300, num_reals=300)


def test_the_table_imports_nothing_heavy() -> None:
    """The config reads it before anything else is imported."""
    code = "import sys, stylegan.evaluation.metric_table; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert not {"numpy", "pydantic", "torch"} & set(found.stdout.split())


# --- keys ---


@pytest.mark.parametrize(
    ("key", "parts"),
    [
        ("fid_inception", ("fid", "inception")),
        ("fid_mixing_classifier", ("fid_mixing", "classifier")),
        ("is_std_inception", ("is_std", "inception")),
        ("is_inception", ("is", "inception")),
        ("separability_w_attributes", ("separability_w", "attributes")),
        ("recall", ("recall", "")),
        ("classifier_accuracy", ("classifier_accuracy", "")),
    ],
)
def test_a_key_is_a_value_and_a_network(key: str, parts: tuple[str, str]) -> None:
    assert split_key(key) == parts


@pytest.mark.parametrize(
    ("key", "direction"),
    [("recall_vgg16", "higher"), ("is_inception", "higher"), ("kid_x", "lower"), ("new_x", "lower")],
)
def test_the_better_direction(key: str, direction: str) -> None:
    assert better(key) == direction


def test_what_is_neither_better_nor_worse() -> None:
    assert [describe(key).better for key in ("classifier_accuracy", "is_std_inception")] == [None, None]
    assert describe("classifier_accuracy").title == "classifier accuracy"


def test_keys_are_ranked_as_pages_show_them() -> None:
    keys = [
        "classifier_accuracy",
        "ppl_wend_lpips",
        "is_std_inception",
        "is_inception",
        "fid_mixing_inception",
        "fid_x",
    ]
    assert sorted(keys, key=rank) == keys[::-1]
