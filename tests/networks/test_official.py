"""Official pickles become networks that compute the official formulas.

Anything else is refused, and nothing in it is run.
"""

import os
import pickle

import numpy as np
import official_tf as tf
import pytest
import torch

from stylegan.errors import StepError
from stylegan.networks.official import load_official

TRADITIONAL = {
    "use_styles": False,
    "const_input_layer": False,
    "use_noise": False,
    "use_pixel_norm": True,
    "use_instance_norm": False,
    "mapping_layers": 0,
}
CASES = {
    "8": tf.arguments(8),
    "32 grey, 3 classes": tf.arguments(32, 1, label_size=3),
    "32 wide": tf.arguments(32, fmap_base=48, fmap_max=20, fmap_decay=0.7, mapping_layers=4, mapping_lrmul=0.1),
    "128": tf.arguments(128),
    "4": tf.arguments(4),
    "traditional": tf.arguments(16, 1, **TRADITIONAL),
    "dense input with styles": tf.arguments(16, const_input_layer=False, use_noise=False),
    "no blur, no stddev": tf.arguments(16, blur_filter=None, mbstd_group_size=0),
    "fused everywhere": tf.arguments(16, fused_scale=True),
    "fused nowhere": tf.arguments(128, fused_scale=False),
}


def inputs(given: dict) -> tuple[np.ndarray, np.ndarray | None]:
    """Return four latents, and their labels if the network is conditional."""
    z = np.random.default_rng(1).standard_normal((4, given["latent_size"]))
    return z, np.arange(4) % given["label_size"] if given["label_size"] else None


def tensor(labels: np.ndarray | None) -> torch.Tensor | None:
    return None if labels is None else torch.from_numpy(labels)


def message(data: bytes) -> str:
    """Return the message of one line with which these bytes are refused."""
    with pytest.raises(StepError) as caught:
        load_official(data)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
    return str(caught.value)


@pytest.mark.parametrize("lod", [0, 0.3])
@pytest.mark.parametrize("case", CASES)
def test_generator_computes_the_official_formulas(case: str, lod: float) -> None:
    """Check stored noise, labels and truncation; with lod, the second to last toRGB contributes too."""
    given = CASES[case]
    Gs = load_official(tf.write(given)).Gs.double()
    z, labels = inputs(given)
    expected = tf.generate(
        given, tf.generator_variables(given), z, labels=labels, psi=0.7, lod=lod if given["resolution"] > 4 else 0
    )
    images = Gs(torch.from_numpy(z), tensor(labels), truncation_psi=0.7, alpha=1 - lod)
    assert images.shape == (4, given["num_channels"], given["resolution"], given["resolution"])
    np.testing.assert_allclose(images, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("lod", [0, 0.3])
@pytest.mark.parametrize("case", CASES)
def test_discriminator_computes_the_official_formulas(case: str, lod: float) -> None:
    """Check scores: with labels the logit of the image's label; with lod the second fromRGB contributes too."""
    given = CASES[case]
    D = load_official(tf.write(given)).D
    assert D is not None
    shape = (8, given["num_channels"], given["resolution"], given["resolution"])
    images = np.random.default_rng(2).standard_normal(shape)
    labels = np.arange(8) % given["label_size"] if given["label_size"] else None
    expected = tf.score(
        given, tf.discriminator_variables(given), images, labels=labels, lod=lod if given["resolution"] > 4 else 0
    )
    scores = D.double()(torch.from_numpy(images), tensor(labels), alpha=1 - lod)
    np.testing.assert_allclose(scores, expected, rtol=1e-8, atol=1e-8)


def test_whole_file_at_256() -> None:
    """Check all three networks, each with its own weights, and the RGB layers of every resolution."""
    given = tf.arguments(256, fmap_base=1024)
    networks = load_official(tf.write(given))
    assert networks.G is not None
    assert networks.D is not None
    for network, variables in (
        (networks.Gs, tf.generator_variables(given)),
        (networks.G, tf.generator_variables(given, 10)),
    ):
        np.testing.assert_array_equal(network.w_avg, variables[""]["dlatent_avg"])
        for k, layer in enumerate(network.synthesis.to_rgb):
            np.testing.assert_array_equal(
                layer.weight[:, :, 0, 0].T, variables["synthesis"][f"ToRGB_lod{6 - k}/weight"][0, 0]
            )
        for k in range(14):
            np.testing.assert_array_equal(
                network.synthesis.get_buffer(f"noise{k}"), variables["synthesis"][f"noise{k}"]
            )
    for k, layer in enumerate(networks.D.from_rgb):
        np.testing.assert_array_equal(
            layer.weight[:, :, 0, 0].T, tf.discriminator_variables(given)[f"FromRGB_lod{6 - k}/weight"][0, 0]
        )
    assert not networks.Gs.training
    assert not any(parameter.requires_grad for parameter in [*networks.Gs.parameters(), *networks.D.parameters()])


def test_arguments_become_the_model() -> None:
    given = tf.arguments(
        8, label_size=2, style_mixing_prob=None, dlatent_avg_beta=0.9, mbstd_group_size=8, blur_filter=None
    )
    networks = load_official(tf.write(given))
    model = networks.Gs.model
    assert (model.latent_size, model.mapping_layers, model.mapping_fmaps, model.fmap_base, model.fmap_max) == (
        6,
        2,
        5,
        32,
        4,
    )
    assert (model.style_mixing_prob, model.w_avg_beta, model.blur, model.conditional) == (0, 0.9, False, True)
    assert networks.D is not None
    assert (networks.D.model.mbstd_group, networks.D.num_labels) == (8, 2)


@pytest.mark.parametrize(
    "missing", [["num_channels"], ["resolution"], ["label_size"], ["num_channels", "resolution", "label_size"]]
)
def test_sizes_of_the_data_are_read_from_the_variables_if_need_be(missing: list[str]) -> None:
    def forget(states: dict) -> None:
        for content in states.values():
            content["static_kwargs"] = {
                key: value for key, value in content["static_kwargs"].items() if key not in missing
            }
            for part in content["components"].values():
                part.state["static_kwargs"] = content["static_kwargs"]

    networks = load_official(tf.write(tf.arguments(16, 1, label_size=3), change=forget))
    assert networks.D is not None
    for network in (networks.Gs, networks.D):
        assert (network.resolution, network.channels, network.num_labels) == (16, 1, 3)


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_every_way_to_pickle_arrays(protocol: int) -> None:
    """Check old and new names of numpy's modules, C and Fortran order, and big-endian double precision."""

    def vary(states: dict) -> None:
        variables = dict(states["Gs"]["components"]["synthesis"].state["variables"])
        variables["noise0"] = np.asfortranarray(variables["noise0"])
        variables["8x8/Conv1/weight"] = np.asfortranarray(variables["8x8/Conv1/weight"]).astype(">f8")
        states["Gs"]["components"]["synthesis"].state["variables"] = list(variables.items())

    given = tf.arguments(8)
    data = tf.write(given, protocol=protocol, change=vary)
    expected = tf.generator_variables(given)["synthesis"]
    for content in [data, data.replace(b"numpy._core", b"numpy.core")] if protocol == 2 else [data]:
        layers = load_official(content).Gs.synthesis
        np.testing.assert_array_equal(layers.get_buffer("noise0"), expected["noise0"])
        np.testing.assert_array_equal(
            layers.get_parameter("layers.3.source.weight").permute(2, 3, 1, 0), expected["8x8/Conv1/weight"]
        )


def test_dict_and_single_network() -> None:
    """Check a dict of networks, and a single averaged generator."""
    given = tf.arguments(8)
    whole = load_official(tf.write(given, pack=lambda networks: dict(zip(("G", "D", "Gs"), networks, strict=True))))
    alone = load_official(tf.write(given, pack=lambda networks: networks[2]))
    assert whole.D is not None
    assert alone.D is None
    assert alone.G is None
    assert torch.equal(whole.Gs.w_avg, alone.Gs.w_avg)
    assert "no averaged generator Gs" in message(tf.write(given, pack=lambda networks: networks[1]))
    assert "holds a tuple of 2" in message(tf.write(given, pack=lambda networks: tuple(networks[:2])))
    assert "holds a NoneType" in message(pickle.dumps(None))


def test_version_2_without_components_is_enough_for_a_discriminator() -> None:
    def old(states: dict) -> None:
        states["D"]["version"] = 2
        del states["D"]["components"]

    assert load_official(tf.write(tf.arguments(8), change=old)).D is not None


class Hostile:
    """An object that runs a command when `pickle.loads` reads it."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple:
        return os.system, (self.command,)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_commands_in_a_pickle_are_not_run(tmp_path, protocol: int) -> None:
    """Check that the command is not run; `pickle.loads` does run it from the same bytes, so the attack is real."""
    marker = tmp_path / "ran"
    data = pickle.dumps((Hostile(f"touch {marker}"),) * 3, protocol=protocol)
    assert f"names '{os.name}.system'" in message(data)
    hidden = tf.write(
        tf.arguments(8), change=lambda states: states["Gs"]["static_kwargs"].update(extra=Hostile(f"touch {marker}"))
    )
    assert f"names '{os.name}.system'" in message(hidden)
    assert not marker.exists()
    pickle.loads(data)
    assert marker.exists()


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (b"cbuiltins\neval\n(S'1'\ntR.", "builtins.eval"),
        (b"cnumpy\nload\n(S'/etc/passwd'\ntR.", "numpy.load"),
        (b"\x80\x04\x8c\x05numpy\x8c\x0cf2py.os.name\x93.", "numpy.f2py.os.name"),
        (b"cdnnlib.tflib.network\nNetwork.__init__\n.", "dnnlib.tflib.network.Network.__init__"),
        (b"c_codecs\nencode\n(S'1'\nS'punycode'\ntR.", "text encoding 'punycode'"),
        (b"cnumpy\ndtype\n(S'O'\ntR.", "numpy type 'O'"),
        (b"(cnumpy\nndarray\n(I1000000000\nI1000000000\ntR.", "not an official network pickle"),
        (b"c" + b"x" * 10_000 + b"\ny\n.", "xxx..."),
    ],
)
def test_other_names_are_refused(code: bytes, says: str) -> None:
    """Check that the message contains the refused name, even if it hides behind an allowed one."""
    assert says in message(code)


def test_an_array_cannot_ask_for_more_memory_than_it_has_bytes() -> None:
    small = pickle.dumps(np.zeros((3, 5), np.float32), protocol=2)
    huge = small.replace(b"K\x03K\x05", b"J\xff\xff\xff\x7fJ\xff\xff\xff\x7f", 1)
    assert huge != small
    assert "has 60 bytes" in message(huge)


def test_source_code_in_a_pickle_is_not_run() -> None:
    """Check that the source which `write` puts into every network, and which would end the process, is not run."""
    assert b"SystemExit" in tf.write(tf.arguments(8))
    load_official(tf.write(tf.arguments(8)))


def test_damaged_files() -> None:
    data = tf.write(tf.arguments(8))
    for cut in (0, 1, 2, 100, len(data) // 2, len(data) - 1):
        assert f"these {cut} bytes are not an official network pickle or are cut short" in message(data[:cut])
    message(b"<html>404 Not Found</html>")
    message(b"version https://git-lfs.github.com/spec/v1\n")


def variables(states: dict, role: str, part: str | None = None) -> list:
    """Return the names and values of a network, or of one of its components."""
    content = states[role]["components"][part].state if part else states[role]
    return content["variables"]


def arguments(states: dict, role: str) -> dict:
    return states[role]["static_kwargs"]


SKIP = ("8x8/Skip/weight", np.zeros((1, 1, 4, 4)))
GROWING = ("lod", np.float32(2.5))
UNFIT = {
    "G: version 4 of the network format; StyleGAN v1 wrote 2 and 3": lambda s: s["G"].update(version=4),
    "Gs.'synthesis': version 1": lambda s: s["Gs"]["components"]["synthesis"].state.update(version=1),
    "Gs: built by 'G_main'; only StyleGAN v1's G_style": lambda s: s["Gs"].update(build_func_name="G_main"),
    "D: built by 'D_stylegan2'": lambda s: s["D"].update(build_func_name="D_stylegan2"),
    "D: variable '8x8/Skip/weight' of shape [1, 1, 4, 4] belongs to no layer": lambda s: variables(s, "D").append(SKIP),
    "D: variable 'lod' occurs twice": lambda s: variables(s, "D").append(GROWING),
    "G: variable 'x' is not an array": lambda s: variables(s, "G").append(("x", "text")),
    "D: variable FromRGB_lod1/bias of shape [4] is missing": lambda s: variables(s, "D").pop(),
    "Gs: variable synthesis/ToRGB_lod1/bias of shape [3] is missing": lambda s: variables(s, "Gs", "synthesis").pop(),
    "Gs: variable mapping/LabelConcat/weight of shape [2, 6] is missing": lambda s: s["Gs"]["components"].pop(
        "mapping"
    ),
    "D: variable 4x4/Conv/weight has shape [3, 3, 5, 4]; the network's": lambda s: arguments(s, "D").update(fmap_max=5),
    "Gs: lod=2.5, a snapshot of a network that was still growing": lambda s: variables(s, "Gs").__setitem__(0, GROWING),
    "D: use_wscale=False has no counterpart here; allowed: True": lambda s: arguments(s, "D").update(use_wscale=False),
    "G: structure='fixed' has no counterpart": lambda s: arguments(s, "G").update(structure="fixed"),
    "G: resolution=24 has no counterpart": lambda s: arguments(s, "G").update(resolution=24),
    "blur_filter=[1, 3, 3, 1] is neither": lambda s: arguments(s, "G").update(blur_filter=[1, 3, 3, 1]),
    "G: dlatent_size=7 differs from latent_size": lambda s: arguments(s, "G").update(dlatent_size=7),
    "ModelConfig latent_size Input should be less": lambda s: arguments(s, "G").update(
        latent_size=10**30, dlatent_size=10**30
    ),
    "ModelConfig mapping_layers Input should be less": lambda s: arguments(s, "G").update(mapping_layers=10**9),
    "G: cannot make a network from its arguments (Validation": lambda s: arguments(s, "G").update(fmap_max="many"),
    "not an official network pickle": lambda s: s["G"].update(static_kwargs=None),
}


@pytest.mark.parametrize("says", UNFIT)
def test_networks_that_do_not_fit(says: str) -> None:
    """Check that the line names the network, and the variable with its shape or the argument with its value."""
    assert says in message(tf.write(tf.arguments(8, label_size=2), change=UNFIT[says]))
