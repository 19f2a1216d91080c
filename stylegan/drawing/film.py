"""Write films: frames that are drawn one after the other become an .mp4 or an animated .webp, in memory that does not grow.

H.264 comes from the system's ffmpeg, else from PyAV (the extra `video`). Both contain x264, which is under the GPL: neither
is a dependency of this program. Animated WebP needs nothing; its encoder keeps the compressed frames until the end.
"""

from __future__ import annotations

import importlib.util
import itertools
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image

from stylegan import storage
from stylegan.errors import ConfigError, StepError, one_line, shown
from stylegan.images import PAPER
from stylegan.outputs import STDOUT, write_output

FILM_FORMATS = (".mp4", ".webp")
CELL = 256  # pixels: smaller images are enlarged to this side, since players smooth what they enlarge
LARGEST_SIDE = 4096  # pixels that decoders of H.264 show everywhere
# Nearly lossless; the second one is of builds of ffmpeg without x264.
ENCODERS = {"libx264": ["-crf", "16", "-preset", "medium"], "mpeg4": ["-q:v", "2"]}


def can_write_mp4() -> bool:
    """Return whether this machine has an encoder of H.264."""
    return shutil.which("ffmpeg") is not None or importlib.util.find_spec("av") is not None


def film_format() -> str:
    """Return the ending of a film for which nobody has chosen one: .mp4 where it can be written."""
    return FILM_FORMATS[0] if can_write_mp4() else FILM_FORMATS[1]


def check_film(out: str, size: tuple[int, int] | None = None) -> None:
    """Check that a film can be written.

    Args:
        out: its file, whose ending `output_file` has checked.
        size: width and height of a frame, if they are known.

    Raises:
        ConfigError: there is no encoder for its ending, or its frames are too large.
    """
    if out.lower().endswith(".mp4") and not can_write_mp4():
        raise ConfigError(
            f"--out {out}: needs ffmpeg on the PATH, or the extra `video` (pip install av); or give a name that ends in .webp"
        )
    if size and max(size) > LARGEST_SIDE:
        raise ConfigError(
            f"a frame of {size[0]}x{size[1]} pixels is too large: at most {LARGEST_SIDE} a side; give a smaller --grid"
        )


def write_film(target: str, ending: str, frames: Iterable[Image.Image], *, count: int, fps: int) -> None:
    """Draw the frames of a film, and write it.

    Args:
        target: what `output_file` has made of an `--out`.
        ending: the format, one of FILM_FORMATS.
        frames: all of one size; taken one by one as they are encoded.
        count: their number.
        fps: frames in a second.

    Raises:
        StepError: the encoder fails, or the file cannot be written.
    """
    with tempfile.TemporaryDirectory(prefix="stylegan-film-") as folder:
        path = Path(folder, f"film{ending}")
        pictures = map(_even, frames)
        if ending == ".webp":
            _write_webp(path, pictures, count, fps)
        elif shutil.which("ffmpeg"):
            _write_by_ffmpeg(path, pictures, fps)
        else:
            _write_by_pyav(path, pictures, fps)
        if target == STDOUT or storage.is_local(target):
            write_output(target, path.read_bytes())
        else:
            storage.upload(path, target)


def film_bytes(ending: str, frames: Iterable[Image.Image], *, count: int, fps: int) -> bytes:
    """Draw the frames of a short film, and return the bytes of its file. Arguments and errors as for `write_film`."""
    with tempfile.TemporaryDirectory(prefix="stylegan-film-") as folder:
        path = Path(folder, f"whole{ending}")
        write_film(str(path), ending, frames, count=count, fps=fps)
        return path.read_bytes()


def _even(frame: Image.Image) -> Image.Image:
    """Return a frame in RGB with even sides, as H.264's colours of half resolution need them."""
    width, height = (side + side % 2 for side in frame.size)
    if frame.size == (width, height) and frame.mode == "RGB":
        return frame
    sheet = Image.new("RGB", (width, height), PAPER)
    sheet.paste(frame)
    return sheet


def _write_by_ffmpeg(path: Path, frames: Iterator[Image.Image], fps: int) -> None:
    first = next(frames)
    encoder = next((name for name in ENCODERS if _has_encoder(name)), None)
    if encoder is None:
        raise StepError(f"ffmpeg has none of the encoders {', '.join(ENCODERS)}; give a name that ends in .webp")
    command = ["ffmpeg", "-loglevel", "error", "-nostdin", "-y", "-f", "rawvideo", "-pix_fmt", "rgb24"]
    command += ["-s", f"{first.width}x{first.height}", "-r", str(fps), "-i", "-", "-an", "-c:v", encoder]
    command += [*ENCODERS[encoder], "-pix_fmt", "yuv420p", "-movflags", "+faststart", str(path)]
    with open(path.with_suffix(".log"), "w+b") as log:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log)
        try:
            assert process.stdin is not None
            for frame in itertools.chain([first], frames):
                process.stdin.write(frame.tobytes())
            process.stdin.close()
            failed = process.wait() != 0
        except BrokenPipeError:  # it has ended before its time, and says why
            failed = True
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
        log.seek(0)
        if failed:
            raise StepError(
                f"ffmpeg failed ({shown(log.read().decode(errors='replace').strip(), 200) or process.returncode})"
            )


def _has_encoder(name: str) -> bool:
    shown = subprocess.run(["ffmpeg", "-hide_banner", "-encoders"], capture_output=True, check=False)
    return f" {name} " in shown.stdout.decode(errors="replace")


def _write_by_pyav(path: Path, frames: Iterator[Image.Image], fps: int) -> None:
    import av

    try:
        with av.open(str(path), "w", options={"movflags": "+faststart"}) as container:
            first = next(frames)
            stream = container.add_stream("libx264", rate=fps, options={"crf": "16", "preset": "medium"})
            stream.width, stream.height, stream.pix_fmt = first.width, first.height, "yuv420p"
            stream.time_base = Fraction(1, fps)
            for frame in itertools.chain([first], frames):
                for packet in stream.encode(av.VideoFrame.from_ndarray(np.asarray(frame), format="rgb24")):
                    container.mux(packet)
            for packet in stream.encode():
                container.mux(packet)
    except av.FFmpegError as error:
        raise StepError(f"PyAV failed ({one_line(error, 200)})") from error


class _Reel(Image.Image):
    """Frames that are drawn when Pillow's encoder seeks them; a list of them would be held in memory."""

    def __init__(self, frames: Iterator[Image.Image], count: int) -> None:
        super().__init__()
        self.frames, self.n_frames, self.place = frames, count, 0
        self.error: Exception | None = None  # of drawing, not of encoding
        self._show_next()

    def _show_next(self) -> None:
        try:
            frame = next(self.frames)
        except Exception as error:
            self.error = error
            raise
        self.im, self._mode, self._size = frame.im, frame.mode, frame.size

    def tell(self) -> int:
        return self.place

    def seek(self, frame: int) -> None:
        if frame == self.place + 1:
            self.place = frame
            self._show_next()


def _write_webp(path: Path, frames: Iterator[Image.Image], count: int, fps: int) -> None:
    reel = _Reel(frames, count)
    try:
        reel.save(path, "WEBP", save_all=True, duration=1000 / fps, loop=0, quality=90, method=2)
    except (OSError, ValueError, SystemError) as error:
        if error is reel.error:
            raise
        raise StepError(f"the WebP encoder failed ({one_line(error, 200)})") from error
