"""Evaluations away from the pipeline: what is asked, what is compared with what, and what is refused."""

import json
import shutil

import pytest
import torch
from PIL import Image
from resnets import make_resnet, write_features, write_resnet

from flows.cli.main import main
from stylegan import storage
from stylegan.cluster.session import connect, ray_session
from stylegan.config.sections import ModelConfig, RayConfig
from stylegan.networks.generator import Generator
from stylegan.networks.weights import save_generator

TINY = ModelConfig(latent_size=8, mapping_layers=1, mapping_fmaps=8, fmap_base=64, fmap_max=8)
FEW = ("evaluation.num_images=100", "evaluation.num_reals=200", "evaluation.bootstrap=4")


@pytest.fixture(scope="module", autouse=True)
def _ray():
    """One Ray for all evaluations here."""
    with ray_session():
        connect(RayConfig())
        yield


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """One storage root: its feature network is trained once."""
    return str(tmp_path_factory.mktemp("root"))


@pytest.fixture
def asked(root):
    """asked(model, *options): the arguments of a small evaluation against the digits."""
    settings = [part for value in (f"storage.root={root}", *FEW) for part in ("-s", value)]
    return lambda model, *options, data="digits": ["evaluate", str(model), "--data", data, *settings, *options]


@pytest.fixture
def checkpoint(tmp_path):
    """checkpoint(resolution=8, **model): a folder with nothing but an untrained generator."""

    def make(resolution=8, **model):
        torch.manual_seed(0)
        generator = Generator(TINY.model_copy(update=model), resolution=resolution, channels=1)
        storage.write_bytes(str(tmp_path / "imported" / "generator.safetensors"), save_generator(generator, ()))
        return tmp_path / "imported"

    return make


def draw_digits(folder, count=100, *, side=8, mode="L"):
    from sklearn.datasets import load_digits

    folder.mkdir(parents=True)
    for number, scan in enumerate(load_digits().images[:count]):
        Image.fromarray((scan * 15.9).astype("uint8")).resize((side, side)).convert(mode).save(
            folder / f"{number:03d}.png"
        )
    return folder


def refused(capsys, arguments, code):
    """The one line of a command that fails, and nothing on standard output."""
    assert main(arguments) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = [line for line in captured.err.splitlines() if line.startswith("stylegan: ")]
    return line


def test_weights_without_a_run_are_measured_against_given_data(capsys, checkpoint, asked, root):
    """One JSON record on standard output; the same again comes from storage, and its page is made again if it is gone."""
    arguments = asked(
        checkpoint(),
        "--metrics",
        "fid,ppl_wend",
        "-s",
        "evaluation.ppl_samples=20",
        "-s",
        "evaluation.ppl_crop=false",
        "--json",
    )
    assert main(arguments) == 0
    (line,) = capsys.readouterr().out.splitlines()
    found = json.loads(line)
    assert (found["kind"], found["data"], found["cached"]) == ("checkpoint", "digits", False)
    assert set(found["report"]["metrics"]) == {"fid_classifier", "ppl_wend_classifier", "classifier_accuracy"}
    assert found["report"]["intervals"]["fid_classifier"][0] <= found["report"]["metrics"]["fid_classifier"]
    assert {row["comparable"] for row in found["published"]} == {False}
    assert "100 generated images, not 50,000" in found["published"][0]["why_not"]
    assert found["page"].startswith(f"{root}/evaluations/")
    storage.delete(found["page"])
    assert main(arguments) == 0
    again = json.loads(capsys.readouterr().out)
    assert again == found | {"cached": True}
    assert "fid_classifier" in storage.read_bytes(again["page"]).decode()


def test_images_are_measured_as_they_are(capsys, tmp_path, asked):
    """A part of the reals is close to them, and an image that is there twice counts twice; --out gets a copy of everything."""
    images, out = draw_digits(tmp_path / "images", 90), tmp_path / "out"
    shutil.copy(images / "000.png", images / "again.png")
    assert main(asked(images, "--metrics", "fid,pr", "--out", str(out), "--json")) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["kind"], found["page"]) == ("images", str(out / "report.html"))
    assert found["report"]["settings"]["num_images"] == 91
    assert found["report"]["metrics"]["precision_classifier"] > 0.8
    assert found["report"]["figures"]["grid"] == str(out / "grid.png")
    assert sorted(path.name for path in out.iterdir()) == [
        "best.png",
        "grid.png",
        "neighbours.png",
        "report.html",
        "report.json",
        "worst.png",
    ]
    assert json.loads((out / "report.json").read_text()) == found["report"]


def test_the_table_says_value_interval_meaning_protocol_and_what_is_published(capsys, tmp_path, asked):
    assert main(asked(draw_digits(tmp_path / "images"), "--metrics", "fid,is")) == 0
    shown = capsys.readouterr().out
    for part in (
        "95 % interval",
        "fid_classifier",
        "is_std_classifier",
        " to ",
        "protocol",
        "Fréchet distance (FID) ↓",
        "How far the generated images are from the real ones",
        "published figures do not compare: other network, other settings, other data",
    ):
        assert part in shown, part
    assert shown.splitlines()[-1].startswith("report      ")


@pytest.mark.parametrize(
    ("side", "mode", "says"),
    [
        (16, "L", "is 16x16 with 1 channel(s), expected 8x8 with 1"),
        (8, "RGB", "is 8x8 with 3 channel(s), expected 8x8 with 1"),
    ],
)
def test_images_of_another_shape_than_the_reference_are_refused(capsys, tmp_path, side, mode, says):
    """Not even one of many is resized silently, and nothing is left in storage."""
    folder = draw_digits(tmp_path / "images", 9)
    Image.new(mode, (side, side)).save(folder / "other.png")
    config = tmp_path / "c.yaml"
    config.write_text(
        f"name: t\nstorage: {{root: {tmp_path}/root}}\ndata: {{source: digits, resolution: 8, channels: 1}}\n"
    )
    line = refused(capsys, ["evaluate", str(folder), "--config", str(config), "--metrics", "fid"], 1)
    assert says in line
    assert "other.png" in line
    assert not list((tmp_path / "root").glob("datasets/*/manifest.json"))


def test_what_cannot_be_measured_is_told_before_anything_is_done(capsys, tmp_path, asked, checkpoint):
    images, plain = draw_digits(tmp_path / "images", 3), checkpoint(styles=False, const_input=False)
    assert "ppl_zfull: needs a generator" in refused(capsys, asked(images, "--metrics", "fid,ppl"), 2)
    assert "no styles to mix" in refused(capsys, asked(plain, "--metrics", "fid_mixing"), 2)
    assert "knows no attributes" in refused(
        capsys, asked(plain, "--metrics", "separability", "-s", "evaluation.features=rotation"), 2
    )
    assert "no metric is called 'fod'" in refused(capsys, asked(images, "--metrics", "fod"), 2)
    assert "what to compare it with is not known; give --data" in refused(capsys, ["evaluate", str(images)], 2)
    assert "no such model" in refused(capsys, asked("nowhere"), 2)
    assert "no images (a folder, an archive or a URL" in refused(capsys, asked(images / "000.png"), 2)
    odd = tmp_path / "odd"
    odd.mkdir()
    Image.new("L", (24, 20)).save(odd / "a.png")
    assert "a.png: is 24x20 with 1 channel(s); images are measured as they are" in refused(capsys, asked(odd), 1)
    (odd / "a.png").write_bytes(b"no image")
    assert "a.png: not an image in a known format" in refused(capsys, asked(odd), 1)
    assert "makes images of shape" in refused(capsys, asked(checkpoint(16), "--config", _config(tmp_path)), 1)


def test_a_resnet_without_a_run_is_measured_by_the_metrics_of_its_papers(capsys, tmp_path, asked):
    """And what needs a w is refused where it is asked for by name."""
    uri = write_resnet(tmp_path / "resnet", channels=1)
    for metric, what in (("ppl_wend", "w beside z"), ("truncation", "w beside z"), ("fid_mixing", "styles to mix")):
        assert refused(capsys, asked(uri, "--metrics", f"fid,{metric}"), 2) == (
            f"stylegan: --metrics {metric}: the generator of {uri} has no {what} (model.architecture: resnet); take it out"
        )
    labels = [str(digit) for digit in range(10)]
    features = write_features(tmp_path, make_resnet(channels=1), *labels)
    assert main(asked(uri, "--json", "-s", f"evaluation.features={features}")) == 0
    report = json.loads(capsys.readouterr().out)["report"]
    assert set(report["metrics"]) == {f"{key}_classifier" for key in ("fid", "is", "is_std")} | {"classifier_accuracy"}
    assert report["skipped"] == {}


def _config(tmp_path):
    path = tmp_path / "eight.yaml"
    path.write_text("name: t\ndata: {source: digits, resolution: 8, channels: 1}\n")
    return str(path)


def test_a_config_says_it_all_itself(capsys, tmp_path):
    for option in ("--metrics", "--config", "--data", "--out"):
        assert f"{option}: is for a MODEL; x.yaml says it itself" in refused(
            capsys, ["evaluate", "x.yaml", option, "fid"], 2
        )
