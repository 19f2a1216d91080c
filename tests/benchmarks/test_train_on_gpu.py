"""The runs that show what a GPU can do, made on a CPU: shards, stages, evaluation, table and pictures, and going on."""

from pathlib import Path

import pytest
from benchmarks.train_on_gpu import main
from PIL import Image

CONFIG = """\
name: tiny
data: {source: digits, resolution: 8}
model: {latent_size: 4, mapping_layers: 1, mapping_fmaps: 4, fmap_base: 8, fmap_max: 2}
training: {start_resolution: 4, batch: 4, fade_kimg: 0.016, stable_kimg: 0.016, total_kimg: 0.064, rotation: {}}
snapshots: {checkpoint_kimg: 0.016, log_kimg: 0.016, samples_kimg: 0.016, probe_kimg: 0.016, probe_images: 40}
evaluation: {metrics: [fid, is], num_images: 200, features: classifier}
"""


def test_variants_are_trained_measured_and_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Stop the first call before it has trained anything, then make it again."""
    config = tmp_path / "tiny.yaml"
    config.write_text(CONFIG)
    out = tmp_path / "out"
    command = [str(out), str(config), "--device", "cpu", "--processes", "1", "--set", f"storage.root={tmp_path}/root"]
    command += ["--variant", "rotation", "--variant", "plain", "training.rotation=null"]

    main([*command, "--minutes", "0"])
    assert "fid_classifier" not in (out / "table.md").read_text()

    main(command)
    table = (out / "table.md").read_text()
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line.startswith("|")
    ]
    assert [row[:3] for row in rows if row[0] in ("rotation", "plain")] == [
        ["rotation", "4", "4"], ["rotation", "8", "4"], ["plain", "4", "4"], ["plain", "8", "4"]
    ]  # fmt: skip
    (metric,) = (row for row in rows if row[0] == "fid_classifier")
    assert float(metric[1]) > 0
    assert float(metric[2]) > 0
    for name in ("rotation-8.png", "plain-8.png", "curves.png", "forgetting.png"):
        Image.open(out / name).load()
    assert "plain: evaluated" in capsys.readouterr().out
