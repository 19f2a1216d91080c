"""Shared by the tests of the command line: a tiny config, and the one line of a command that fails."""

from flows.cli.main import main

TREE = {
    "name": "t",
    "data": {"resolution": 8, "channels": 1},
    "model": {"latent_size": 8, "mapping_layers": 1, "mapping_fmaps": 8, "fmap_base": 64, "fmap_max": 8},
    "training": {"start_resolution": 8, "batch": 4},
    "evaluation": {"metrics": []},
}


def fail(capsys, code, *arguments):
    """Return the one line on standard error of a command that fails with this code and prints nothing else."""
    assert main(list(arguments)) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = [line for line in captured.err.splitlines() if line.startswith("stylegan: ")]
    assert len(lines) == 1, captured.err
    assert "Traceback" not in captured.err
    return lines[0]
