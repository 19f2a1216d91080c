"""Pictures by URL and as JSON: what is drawn, how it is known again, and what is refused in one sentence."""

import base64
import io
import json
import zipfile
from functools import partial

import numpy as np
import pytest
from PIL import Image
from served_models import write_model, write_served_resnet

from flows.cli.main import main
from stylegan.drawing.latents import latent
from stylegan.verbs.serve import projection_means


def pixels(answer):
    assert answer.status_code == 200, answer.text
    return np.array(Image.open(io.BytesIO(answer.content)))


def post(client, *images, **more):
    answer = client.post("/images", json={"images": list(images)} | more)
    assert answer.status_code == 200, answer.text
    return [np.array(Image.open(io.BytesIO(base64.b64decode(text)))) for text in answer.json()["images"]]


def refusal(answer):
    assert answer.status_code == 422, answer.text
    assert list(answer.json()) == ["detail"]
    assert "\n" not in answer.json()["detail"]
    return answer.json()["detail"]


@pytest.mark.parametrize("options", [[], ["--psi", "0.6", "--noise", "stored"], ["--noise", "9", "--label", "owl"]])
def test_a_picture_is_that_of_sample_bit_for_bit(client, found, tmp_path, options):
    """The 16x16 image is enlarged to 64 pixels, as sample does it; then the files are equal."""
    out = tmp_path / "sample.png"
    label = [] if "--label" in options else ["--label", "cat"]
    command = ["sample", found.checkpoint_uri, "--seeds", "12345678901", "--out", str(out), *label, *options]
    assert main(command) == 0
    query = {name.removeprefix("--"): value for name, value in zip(options[::2], options[1::2], strict=True)}
    answer = client.get("/image.png", params={"seed": 12345678901, "size": 64, **query})
    assert answer.content == out.read_bytes()
    assert answer.headers["content-type"] == "image/png"


def test_webp_is_lossless(client):
    answer = client.get("/image.webp?seed=3")
    assert answer.headers["content-type"] == "image/webp"
    np.testing.assert_array_equal(pixels(answer), pixels(client.get("/image.png?seed=3")))


@pytest.mark.parametrize(("size", "side"), [(1, 16), (16, 16), (17, 32), (100, 112), (1024, 1024)])
def test_an_image_is_enlarged_to_at_least_the_size_without_smoothing(client, size, side):
    small, large = pixels(client.get("/image.png?seed=3")), pixels(client.get(f"/image.png?seed=3&size={size}"))
    assert large.shape == (side, side, 3)
    np.testing.assert_array_equal(large[:: side // 16, :: side // 16], small)


def test_every_argument_changes_the_picture_and_its_tag(client):
    plain = client.get("/image.png")
    seen = {plain.content}
    tags = {plain.headers["etag"]}
    for query in (
        "seed=1", "psi=0.5", "label=dog", "label=2", "noise=none", "noise=stored", "noise=1", "to=4&t=0.5", "mix=4",
        "mix=4&crossover=0", "edit=smile:2", "edit=smile:-2", "size=32",
    ):  # fmt: skip
        answer = client.get(f"/image.png?{query}")
        assert answer.status_code == 200, (query, answer.text)
        assert answer.content not in seen, query
        seen.add(answer.content)
        tags.add(answer.headers["etag"])
    assert len(tags) == 14
    for same in ("seed=0&psi=1.0&label=cat&noise=own", "to=4&t=0", "mix=4&crossover=6", "edit=smile:0", "label=0"):
        assert client.get(f"/image.png?{same}").content == plain.content, same


def test_a_walk_ends_at_the_second_seed_with_the_noise_of_the_first(client):
    end = pixels(client.get("/image.png?seed=1&to=2&t=1&noise=none"))
    np.testing.assert_array_equal(end, pixels(client.get("/image.png?seed=2&noise=none")))
    assert (pixels(client.get("/image.png?seed=1&to=2&t=1")) != pixels(client.get("/image.png?seed=2"))).any()


def test_from_the_crossover_on_layers_take_the_styles_of_the_other_seed(client):
    other = pixels(client.get("/image.png?seed=2&noise=none"))
    np.testing.assert_array_equal(pixels(client.get("/image.png?seed=1&mix=2&crossover=0&noise=none")), other)
    coarse = pixels(client.get("/image.png?seed=1&mix=2&crossover=5&noise=none")).astype(int)
    own = pixels(client.get("/image.png?seed=1&noise=none")).astype(int)
    assert 0 < np.abs(coarse - own).mean() < np.abs(other - own).mean()


def test_many_pictures_are_those_of_single_requests(client):
    first, second, third = post(client, {"seed": 1}, {"seed": 2, "psi": 0.5, "edit": {"smile": 1}}, {"label": 1})
    np.testing.assert_array_equal(first, pixels(client.get("/image.png?seed=1")))
    np.testing.assert_array_equal(second, pixels(client.get("/image.png?seed=2&psi=0.5&edit=smile:1")))
    np.testing.assert_array_equal(third, pixels(client.get("/image.png?label=dog")))


def test_given_styles_replace_the_seed(client):
    generator = client.models.current.generator
    size = generator.w_avg.shape[0]
    mean = generator.w_avg.tolist()
    first, second = post(client, {"w": mean, "noise": "none"}, {"w": [mean] * 6, "noise": "none", "seed": 5})
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(first, pixels(client.get("/image.png?psi=0&noise=none")))
    for wrong in ([0.0] * (size + 1), [[0.0] * size] * 5, [[0.0] * size, [0.0]], [1e99] * size, [10**400] * size):
        assert "w: must be finite numbers [6][6] or [6]" in refusal(
            client.post("/images", json={"images": [{"w": wrong}]})
        )


def test_a_zip_holds_the_files_of_the_pictures(client):
    answer = client.post(
        "/images", json={"images": [{"seed": 1}, {}], "format": "webp"}, headers={"Accept": "application/zip"}
    )
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.namelist() == ["0000.webp", "0001.webp"]
        assert archive.read("0000.webp") == client.get("/image.webp?seed=1").content


def test_a_known_picture_is_not_sent_again(client):
    first = client.get("/image.png?seed=4")
    tag = first.headers["etag"]
    assert first.headers["cache-control"] == "no-cache"
    assert first.headers["x-model-version"] == "1"
    again = client.get("/image.png?seed=4", headers={"If-None-Match": f'"x", W/{tag}'})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    assert client.get("/image.png?seed=5", headers={"If-None-Match": tag}).status_code == 200
    assert client.get("/image.webp?seed=4", headers={"If-None-Match": tag}).status_code == 200


def test_another_version_has_other_tags(client, open_app, tmp_path):
    other = open_app(write_model(tmp_path / "other", seed=1))
    assert other.get("/image.png").headers["etag"] != client.get("/image.png").headers["etag"]


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("psi=11", "psi=11: must be a number from -10 to 10"),
        ("psi=nan", "psi=nan: must be a number from -10 to 10"),
        ("seed=-1", "seed=-1: must be a whole number from 0 to 999999999999999999"),
        ("seed=1000000000000000000", "must be a whole number from 0 to 999999999999999999"),
        ("seed=1.5", "seed=1.5: must be a whole number"),
        ("label=cow", "label=cow: no such class; the classes are cat, dog, owl, or 0 to 2"),
        ("label=3", "label=3: no such class"),
        ("noise=loud", "noise=loud: must be own, stored, none, or a seed"),
        ("t=0.5", "t=0.5: needs `to`"),
        ("to=1&t=1.5", "t=1.5: must be a number from 0 to 1"),
        ("crossover=1", "crossover=1: needs `mix`"),
        ("mix=1&crossover=7", "crossover=7: must be a whole number from 0 to 6, the layers of this model"),
        ("edit=smile:11", "edit=smile:11: must name an attribute and a strength from -10 to 10"),
        ("edit=smile", "edit=smile: must name an attribute"),
        ("edit=frown:1", "edit=frown: there is no such attribute; this model's are smile"),
        ("edit=smile:1&edit=smile:2", "edit=smile: is given twice"),
        ("w=../../etc/passwd", "w=../../etc/passwd: there is no such projection"),
        ("size=0", "size=0: must be a whole number from 1 to 1024"),
        ("size=1025", "size=1025: must be a whole number from 1 to 1024"),
        ("seeds=1", "seeds: there is no such argument"),
        ("label=%0a%1b[31m", "label=\\n\\x1b[31m: no such class"),
    ],
)
def test_what_cannot_be_drawn_is_one_sentence_with_the_range(client, query, says):
    assert says in refusal(client.get(f"/image.png?{query}"))


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("{", "not valid JSON"),
        ("[]", "the body must be JSON such as"),
        ('{"images": []}', "images: must be a list of 1 to 64 images"),
        (json.dumps({"images": [{}] * 65}), "images: has 65 entries; must have at most 64"),
        (json.dumps({f"x{n}": 1 for n in range(1000)}), "the body: has 1,000 entries"),
        (json.dumps({"images": [{f"x{n}": 1 for n in range(1000)}]}), "images[0].images: has 1,000 entries"),
        (json.dumps({"images": [{"edit": {f"x{n}": "y" for n in range(1000)}}]}), "images[0].edit: has 1,000 entries"),
        (json.dumps({"images": [{"edit": {f"x{n}": 1 for n in range(33)}}]}), "images[0].edit"),
        (json.dumps({"images": [{"w": ["x"] * 100_000}]}), "w: must be finite numbers [6][6] or [6]"),
        (json.dumps({"images": [{"w": {"a": 1}}]}), "w: must be finite numbers [6][6] or [6]"),
        ('{"images": [{}, {"psi": 11}]}', "images[1].psi=11: must be a number from -10 to 10"),
        ('{"images": [{}, {"style": 1}]}', "images[1].style: there is no such argument"),
        ('{"images": [{"edit": {"smile": 1e400}}]}', "edit"),
        ('{"images": [{"edit": ["smile:1"]}]}', "images[0].edit"),
        ('{"images": [{}], "format": "bmp"}', "format=bmp: must be png or webp"),
        (json.dumps({"images": [{"size": 1024}] * 17}), "images: 17 of 1024x1024 pixels are too many"),
    ],
)
def test_a_body_that_cannot_be_drawn_is_one_sentence(client, body, says):
    assert says in refusal(client.post("/images", content=body, headers={"Content-Type": "application/json"}))


def test_a_model_without_classes_takes_no_label(open_app, tmp_path):
    client = open_app(write_model(tmp_path / "plain", labels=()))
    assert "this model is not class-conditional; leave it out" in refusal(client.get("/image.png?label=0"))
    assert client.get("/model").json()["classes"] == []


def test_the_model_says_what_may_be_asked(client):
    told = client.get("/model").json()
    assert (told["name"], told["version"], told["alias"], told["resolution"]) == ("digits", "1", "champion", 16)
    assert (told["num_layers"], told["layer_resolutions"]) == (6, [4, 4, 8, 8, 16, 16])
    assert told["classes"] == ["cat", "dog", "owl"]
    assert told["attributes"] == [{"name": "smile", "scale": 0.5}]
    assert (told["projection"], told["no_projection"]) == (False, "there is no network to compare images with")
    assert told["limits"]["images"] == 64
    assert client.get(f"/image.png?seed={told['limits']['seed']}").status_code == 200
    assert client.get("/health").json() == {"status": "ok"}
    assert client.get("/ready").json() == {"status": "ready", "version": "1", "trouble": None}
    told = client.get("/version").json()
    assert (told["run_id"], told["device"], told["trouble"]) == ("digits-1", "cpu", None)
    assert latent(0, 6)[0].shape == (1, 6)


def test_a_resnet_is_drawn_and_what_it_does_not_have_is_refused(open_app, tmp_path):
    """Bit for bit as sample draws it; without psi, styles, noise and projection."""
    client = open_app(write_served_resnet(tmp_path / "resnet"), means_of=partial(projection_means, None, "cpu"))
    out = tmp_path / "sample.png"
    assert main(["sample", str(tmp_path / "resnet"), "--seeds", "5", "--label", "owl", "--out", str(out)]) == 0
    assert client.get("/image.png?seed=5&label=owl&size=64&psi=1").content == out.read_bytes()
    assert client.models.current.recorded is not None
    walked = [pixels(client.get(f"/image.png?seed=1&to=2&t={t}")) for t in (0, 0.5, 1)]
    np.testing.assert_array_equal(walked[2], pixels(client.get("/image.png?seed=2")))
    assert not any(np.array_equal(walked[1], end) for end in (walked[0], walked[2]))

    no_w = "this model has no w to truncate (model.architecture: resnet); leave it out"
    assert refusal(client.get("/image.png?psi=0.5")) == f"psi=0.5: {no_w}"
    assert "mix=3: this model has no styles to mix (model.architecture: resnet)" in refusal(
        client.get("/image.png?mix=3")
    )
    assert "it has no w (model.architecture: resnet)" in refusal(client.get("/image.png?edit=smile:1"))
    told = client.get("/model").json()
    assert (told["psi"], told["has_styles"], told["has_noise"], told["layer_resolutions"]) == (None, False, False, [])
    assert (told["num_layers"], told["latent_size"], told["w_size"], told["attributes"]) == (1, 8, 8 + 3, [])
    assert told["projection"] is False
    assert told["no_projection"].startswith("photos: has no w to project pictures into")
    assert "this model cannot project pictures: photos: has no w" in refusal(client.post("/projections", content=b"x"))


def test_the_w_of_a_resnet_is_z_and_the_class_as_numbers(open_app, tmp_path):
    client = open_app(write_served_resnet(tmp_path / "resnet"))
    z = latent(5, 8)[0][0].tolist()
    first, second, between = post(client, {"w": [*z, 0, 1, 0]}, {"w": [*z, 0, 0, 1]}, {"w": [*z, 0, 0.5, 0.5]})
    np.testing.assert_array_equal(first, pixels(client.get("/image.png?seed=5&label=dog")))
    np.testing.assert_array_equal(second, pixels(client.get("/image.png?seed=5&label=owl")))
    assert not any(np.array_equal(between, end) for end in (first, second))


def test_openapi_knows_the_ranges_and_no_page_loads_scripts_from_elsewhere(client):
    told = client.get("/openapi.json").json()
    parameters = {one["name"]: one["schema"] for one in told["paths"]["/image.png"]["get"]["parameters"]}
    assert (parameters["psi"]["minimum"], parameters["psi"]["maximum"]) == (-10, 10)
    assert client.get("/docs").status_code == 404


def test_no_name_leads_out_of_the_folder_of_the_page(client):
    for name in ("..%2fapp.py", "app.py", "%2e%2e%2fapp.py", "__init__.py"):
        assert client.get(f"/static/{name}").status_code == 404
