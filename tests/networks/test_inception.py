"""Comparison of Inception-v3 of 2015-12-05 with torch-fidelity's port of TensorFlow's graph, at equal weights."""

from collections.abc import Callable

import pytest
import torch
from public_weights import file_bytes, inception_state, pictures
from reference import torch_fidelity
from torch import Tensor

from stylegan.errors import ConfigError
from stylegan.images import to_float
from stylegan.networks.inception import InceptionV3, load_inception


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    """Return random weights in the published layout."""
    return inception_state()


@pytest.fixture(scope="module")
def network(state: dict[str, Tensor]) -> InceptionV3:
    """Return the product's network with these weights."""
    return load_inception(file_bytes(state))


@pytest.fixture(scope="module")
def reference(
    state: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Return torch-fidelity's network with these weights: it maps uint8 images to features and logits without bias."""
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    extractor = torch_fidelity("feature_extractor_inceptionv3").FeatureExtractorInceptionV3
    path.write_bytes(file_bytes(state))
    return extractor("inception", ["2048", "logits_unbiased"], feature_extractor_weights_path=path)


@pytest.mark.parametrize("side", [32, 256, 299, 512])
def test_features_and_posteriors_equal_torch_fidelity(side: int, network: InceptionV3, reference: Callable) -> None:
    """Check sizes below, at and above the network's own."""
    images = pictures(2, side)
    features, logits = reference(images)
    pooled, log_posteriors = network(to_float(images))
    torch.testing.assert_close(pooled, features, rtol=1e-4, atol=1e-4 * features.std().item())
    torch.testing.assert_close(log_posteriors, torch.log_softmax(logits, dim=1), rtol=1e-4, atol=1e-4)
    assert (features[0] - features[1]).norm() > 0.02 * features[0].norm()  # features depend on the image


def test_one_pass_equals_two(network: InceptionV3) -> None:
    """Check that `forward` returns `pooled` and `log_posteriors`; grey images count as three equal channels."""
    grey = to_float(pictures(1, 16, channels=1))
    pooled, log_posteriors = network(grey)
    assert (pooled.shape, log_posteriors.shape) == ((1, 2048), (1, 1008))
    assert torch.equal(network.pooled(grey.repeat(1, 3, 1, 1)), pooled)
    assert torch.equal(network.log_posteriors(grey), log_posteriors)
    assert float(log_posteriors.exp().sum()) == pytest.approx(1, abs=1e-5)


def test_loading_draws_nothing_and_freezes(state: dict[str, Tensor]) -> None:
    """Check that the global random state does not change and that the network is for inference.

    Files with counters of batches, as PyTorch 0.4 wrote them, are accepted.
    """
    before = torch.get_rng_state()
    network = load_inception(file_bytes(state | {"Mixed_5b.branch1x1.bn.num_batches_tracked": torch.tensor(0)}))
    assert torch.equal(before, torch.get_rng_state())
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_random_weights_see_their_input() -> None:
    """Check that features differ from image to image without a file too."""
    torch.manual_seed(0)
    with torch.no_grad():
        pooled = InceptionV3().pooled(to_float(pictures(2, 32)))
    assert (pooled[0] - pooled[1]).norm() > 0.01 * pooled[0].norm()


def test_refuses_other_networks_of_the_name(state: dict[str, Tensor]) -> None:
    """Check that torchvision's network (auxiliary head, 1000 classes) and a negative variance are refused."""
    cure = (
        r".*; give pt_inception-2015-12-05-6726825d.pth of pytorch-fid "
        r"or weights-inception-2015-12-05-6726825d.pth of torch-fidelity$"
    )
    cases = {
        "'AuxLogits.conv0.conv.weight' is not part of this network": {"AuxLogits.conv0.conv.weight": torch.ones(1)},
        r"'fc.weight' has the shape \[1000, 2048\], not \[1008, 2048\]": {"fc.weight": torch.ones(1000, 2048)},
        "a variance of the normalisation is negative": {"Mixed_7c.branch1x1.bn.running_var": -torch.ones(320)},
    }
    for reason, change in cases.items():
        with pytest.raises(ConfigError, match=rf"^Inception-v3 of 2015-12-05: this file .*{reason}{cure}"):
            load_inception(file_bytes(state | change))
