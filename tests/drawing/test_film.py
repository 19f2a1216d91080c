"""Films: both formats, every encoder that is here, in memory that does not grow with their length."""

import importlib.util
import io
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from stylegan.drawing import film
from stylegan.drawing.film import check_film, film_format, write_film
from stylegan.errors import ConfigError, StepError

HAS_AV = importlib.util.find_spec("av") is not None


def frames(count, size=(66, 35)):
    for number in range(count):
        yield Image.new("RGB", size, (number * 255 // count, 100, 50))


def decoded(path):
    import av

    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return [frame.to_image() for frame in container.decode(stream)], float(stream.average_rate)


@pytest.mark.skipif(not HAS_AV, reason="needs PyAV to look into the film")
@pytest.mark.parametrize("encoder", ["ffmpeg", "av"])
def test_mp4_shows_every_frame(tmp_path, monkeypatch, encoder):
    """An odd side is made even, as H.264 needs it."""
    if encoder == "ffmpeg" and not shutil.which("ffmpeg"):
        pytest.skip("there is no ffmpeg here")
    if encoder == "av":
        monkeypatch.setattr(film.shutil, "which", lambda name: None)
    path = tmp_path / "x.mp4"
    write_film(str(path), ".mp4", frames(12), count=12, fps=25)
    images, rate = decoded(path)
    assert (len(images), rate, images[0].size) == (12, 25, (66, 36))
    reds = [int(np.asarray(image)[:30, :, 0].mean()) for image in images]
    assert np.abs(np.array(reds) - np.arange(12) * 255 // 12).max() <= 6


def test_webp_shows_every_frame_at_its_time(tmp_path):
    path = tmp_path / "x.webp"
    write_film(str(path), ".webp", frames(9), count=9, fps=30)
    with Image.open(path) as image:
        assert (image.n_frames, image.size) == (9, (66, 36))
        ends = []
        for number in range(9):
            image.seek(number)
            image.load()
            ends.append(image.info["timestamp"])
            assert abs(int(np.asarray(image.convert("RGB"))[:30, :, 0].mean()) - number * 255 // 9) <= 6
    assert ends == [round(number * 1000 / 30) for number in range(9)]


def test_memory_does_not_grow_with_the_length(tmp_path):
    """Eight times the frames, which would be 380 MB as pictures, take at most 40 MB more."""
    script = (
        "import resource, sys\nfrom PIL import Image\nfrom stylegan.drawing.film import write_film\n"
        "n = int(sys.argv[1])\n"
        "write_film(sys.argv[2], '.webp', (Image.new('RGB', (512, 512), (i % 256, 0, 0)) for i in range(n)), count=n, fps=30)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    used = [
        int(
            subprocess.run(
                [sys.executable, "-c", script, str(n), str(tmp_path / "x.webp")], capture_output=True, check=True
            ).stdout
        )
        for n in (60, 480)
    ]
    assert used[1] - used[0] < 40_000


def test_without_an_encoder_mp4_is_refused_and_webp_chosen(monkeypatch):
    monkeypatch.setattr(film.shutil, "which", lambda name: None)
    monkeypatch.setattr(film.importlib.util, "find_spec", lambda name: None)
    assert film_format() == ".webp"
    check_film("x.webp")
    with pytest.raises(
        ConfigError, match=r"^--out x\.MP4: needs ffmpeg on the PATH, or the extra `video` .* ends in \.webp$"
    ):
        check_film("x.MP4")


def test_frames_that_players_cannot_show_are_refused():
    with pytest.raises(ConfigError, match=r"^a frame of 8192x1024 pixels is too large: at most 4096 a side"):
        check_film("x.webp", (8192, 1024))


def test_what_a_broken_ffmpeg_says_is_one_line(tmp_path, monkeypatch):
    """It may end before it has read all frames; a half-written film is not left."""
    tool = tmp_path / "bin" / "ffmpeg"
    tool.parent.mkdir()
    tool.write_text(
        "#!/bin/sh\ncase $2 in -encoders) echo ' V libx264 x';; *) echo 'no space for x264' >&2; exit 3;; esac\n"
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:{os.environ['PATH']}")
    with pytest.raises(StepError, match=r"^ffmpeg failed \(no space for x264\)$"):
        write_film(str(tmp_path / "x.mp4"), ".mp4", frames(2000, (512, 512)), count=2000, fps=30)
    assert not (tmp_path / "x.mp4").exists()


def test_an_error_while_drawing_ends_the_encoder(tmp_path):
    def broken():
        yield from frames(3)
        raise ValueError("the fourth")

    for ending in (".webp", ".mp4") if HAS_AV or shutil.which("ffmpeg") else (".webp",):
        with pytest.raises(ValueError, match="the fourth"):
            write_film(str(tmp_path / f"x{ending}"), ending, broken(), count=5, fps=30)
        assert not (tmp_path / f"x{ending}").exists()


def test_a_film_goes_to_standard_output(tmp_path):
    script = (
        "from PIL import Image\nfrom stylegan.drawing.film import write_film\n"
        "write_film('-', '.webp', (Image.new('L', (8, 8), 80 * i) for i in range(3)), count=3, fps=3)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert Image.open(io.BytesIO(done.stdout)).n_frames == 3
