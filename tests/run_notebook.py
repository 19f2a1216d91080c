"""Runs `configs/quickstart.ipynb` on the finished quickstart and keeps its outputs in the file: `make notebook`."""

from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[1] / "configs" / "quickstart.ipynb"

if __name__ == "__main__":
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, record_timing=False, resources={"metadata": {"path": str(NOTEBOOK.parent)}}).execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            # Streams hold warnings about this machine, and Pillow gives every picture in two formats.
            cell.outputs = [output for output in cell.outputs if output.output_type != "stream"]
            for output in cell.outputs:
                output.data.pop("image/jpeg", None)
    notebook.metadata.language_info = {"name": "python"}  # without the version of Python here
    nbformat.write(notebook, NOTEBOOK)
