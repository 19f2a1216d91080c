"""Chunks of samples: every worker draws the same ones."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from resnets import write_resnet

from stylegan import storage
from stylegan.config.sections import EvaluationConfig
from stylegan.data.shardset import ShardSet
from stylegan.errors import StepError
from stylegan.evaluation.features.spaces import Spaces
from stylegan.evaluation.generate import (
    CHUNK_SIZE,
    GENERATED,
    Pass,
    SampleChunk,
    Subject,
    generator_of,
    read_generator,
    sha256,
)


@pytest.fixture
def chunk(shards: ShardSet, evaluation: EvaluationConfig, checkpoint: Callable[..., str]) -> SampleChunk:
    """Return the first full chunk of a tiny generator."""
    uri = storage.join(checkpoint(), "generator.safetensors")
    subject = Subject(uri, sha256(read_generator(uri)), None, shards, (), Spaces({}), evaluation, "cpu")
    return SampleChunk(subject, GENERATED, (("pooled", CHUNK_SIZE),), 0)


def shortened(chunk: SampleChunk, count: int) -> SampleChunk:
    """Return the chunk with its first `count` samples only."""
    return replace(chunk, wants=(("pooled", count),))


def test_a_chunk_has_as_many_samples_as_its_longest_product(chunk: SampleChunk) -> None:
    chunk = replace(chunk, wants=(("pooled", 300), ("attributes", 400)), index=1)
    assert (chunk.first, chunk.count) == (256, 144)
    assert (chunk.num_wanted("pooled"), chunk.num_wanted("attributes"), chunk.num_wanted("z")) == (44, 144, 0)
    assert replace(chunk, index=0).count == CHUNK_SIZE


def test_latents_depend_on_seed_stream_and_chunk_alone(chunk: SampleChunk) -> None:
    first = chunk.latents(16)
    torch.rand(1)
    assert torch.equal(first, chunk.latents(16))
    seeded = replace(
        chunk, subject=replace(chunk.subject, evaluation=chunk.subject.evaluation.model_copy(update={"seed": 1}))
    )
    others = [
        replace(chunk, index=1, wants=(("pooled", 2 * CHUNK_SIZE),)).latents(16),
        replace(chunk, source=Pass("p", path="ppl_wend")).latents(16),
    ]
    others += [seeded.latents(16), chunk.latents(16, name="z1")]
    assert not any(torch.equal(first, other) for other in others)


def test_truncated_and_mixed_images_come_from_the_same_latents(chunk: SampleChunk) -> None:
    for source in (Pass("truncation 0.5", psi=0.5), Pass("mixing 2", latents=2)):
        assert torch.equal(replace(chunk, source=source).latents(16), chunk.latents(16))


def test_a_short_chunk_is_the_beginning_of_a_whole_one(chunk: SampleChunk) -> None:
    chunk = replace(chunk, subject=replace(chunk.subject, label_weights=(0.5, 0.5)))
    short = shortened(chunk, 5)
    assert torch.equal(short.latents(3), chunk.latents(3)[:5])
    assert torch.equal(short.path_positions(), chunk.path_positions()[:5])
    assert torch.equal(short.labels(), chunk.labels()[:5])  # type: ignore[index,arg-type]


def test_an_image_does_not_depend_on_how_many_follow_it(chunk: SampleChunk) -> None:
    """Otherwise a metric would depend on the metrics beside it."""
    generator = generator_of(chunk.subject)
    whole = torch.cat([images for _, _, _, images in chunk.samples(generator)])
    short = torch.cat([images for _, _, _, images in shortened(chunk, 70).samples(generator)])
    torch.testing.assert_close(short, whole[:70])


def test_an_image_of_a_resnet_does_not_depend_on_those_beside_it(chunk: SampleChunk, tmp_path: Path) -> None:
    """Its statistics are those of the file, not of the batch."""
    uri = storage.join(write_resnet(tmp_path, "left", "right"), "generator.safetensors")
    subject = replace(
        chunk.subject, generator_uri=uri, generator_sha256=sha256(read_generator(uri)), label_weights=(0.5, 0.5)
    )
    chunk = replace(chunk, subject=subject, wants=(("pooled", 100),))
    generator, labels = generator_of(subject), chunk.labels()
    drawn = torch.cat([images for _, _, _, images in chunk.samples(generator)])
    assert labels is not None
    for row, (z, label) in enumerate(zip(chunk.latents(8).split(1), labels.split(1), strict=True)):
        torch.testing.assert_close(drawn[row : row + 1], generator(z, label))
    assert drawn.std(0).mean() > 0.1


def test_labels_are_drawn_as_often_as_the_data_has_them(chunk: SampleChunk) -> None:
    assert chunk.labels() is None
    weighted = replace(
        chunk, subject=replace(chunk.subject, label_weights=(0.0, 0.75, 0.25)), wants=(("pooled", 10 * CHUNK_SIZE),)
    )
    drawn = torch.cat([replace(weighted, index=i).labels() for i in range(10)])  # type: ignore[misc]
    share = torch.bincount(drawn, minlength=3) / len(drawn)
    assert share[0] == 0
    assert share[1] == pytest.approx(0.75, abs=0.05)


def test_batches_cover_the_chunk_and_shrink_with_the_resolution(chunk: SampleChunk) -> None:
    for resolution, size in ((8, 64), (256, 32), (1024, 4)):
        batches = list(shortened(chunk, 70).batches(resolution))
        assert [i for batch in batches for i in range(batch.start, batch.stop)] == list(range(70))
        assert batches[0].stop == size


def test_only_batches_with_a_row_that_is_asked_for_are_made(chunk: SampleChunk) -> None:
    assert list(chunk.batches(8, [3, 70, 71])) == [slice(0, 64), slice(64, 128)]


def test_shared_noise_is_one_draw_per_layer_and_batch(chunk: SampleChunk) -> None:
    noise = chunk.shared_noise(0)
    assert noise(2, 6, 8).shape == (1, 1, 8, 8)
    assert torch.equal(noise(2, 6, 8), noise(2, 3, 8))
    assert not torch.equal(noise(2, 6, 8), noise(3, 6, 8))
    assert not torch.equal(noise(2, 6, 8), chunk.shared_noise(64)(2, 6, 8))


def test_noise_differs_between_images_and_comes_again(chunk: SampleChunk) -> None:
    drawn = chunk.noise(0, 64)(0, 2, 4)
    assert drawn.shape == (2, 1, 4, 4)
    assert not torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn, chunk.noise(0, 64)(0, 2, 4))


def test_images_are_those_of_the_generator(chunk: SampleChunk) -> None:
    generator = generator_of(chunk.subject)
    batch, z, w, images = next(chunk.samples(generator))
    assert batch == slice(0, 64)
    torch.testing.assert_close(z, chunk.latents(16)[:64])
    torch.testing.assert_close(w, generator.mapping(z))
    torch.testing.assert_close(images, generator(z, noise=chunk.noise(0, 64)))


def test_truncation_is_that_of_the_generator(chunk: SampleChunk) -> None:
    generator = generator_of(chunk.subject)
    generator.w_avg.fill_(0.3)
    _, z, _, images = next(replace(chunk, source=Pass("truncation 0.5", psi=0.5)).samples(generator))
    torch.testing.assert_close(images, generator(z, noise=chunk.noise(0, 64), truncation_psi=0.5))
    generator.w_avg.zero_()


def test_cutoffs_are_different_layers_in_order_and_random_per_image(chunk: SampleChunk) -> None:
    cutoffs = replace(chunk, source=Pass("mixing 4", latents=4)).cutoffs(6)
    assert cutoffs.shape == (CHUNK_SIZE, 3)
    assert (cutoffs.diff(dim=1) > 0).all()
    assert cutoffs.unique().tolist() == [1, 2, 3, 4, 5]


def test_each_layer_takes_the_latent_whose_turn_it_is(chunk: SampleChunk) -> None:
    mixing = replace(chunk, source=Pass("mixing 3", latents=3))
    styles = [torch.full((64, 2), float(k)) for k in range(3)]
    ws = mixing._mix(styles, slice(0, 64), 5)[:, :, 0]
    for row, (first, second) in zip(ws.tolist(), mixing.cutoffs(5)[:64].tolist(), strict=True):
        assert row == [0.0] * first + [1.0] * (second - first) + [2.0] * (5 - second)


def test_a_replaced_file_is_not_mistaken_for_the_old_one(chunk: SampleChunk, checkpoint: Callable[..., str]) -> None:
    generator_of(chunk.subject)
    checkpoint(change=lambda generator: generator.w_avg.fill_(1.0))
    data = read_generator(chunk.subject.generator_uri)
    assert generator_of(replace(chunk.subject, generator_sha256=sha256(data))).w_avg[0] == 1
    with pytest.raises(StepError, match="changed since this work began"):
        generator_of(chunk.subject)


def test_a_missing_generator_is_one_line(tmp_path: object) -> None:
    with pytest.raises(StepError, match="there is no such file; give the URI of a checkpoint"):
        read_generator(f"{tmp_path}/generator.safetensors")
