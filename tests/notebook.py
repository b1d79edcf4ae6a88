"""Executes docs/quickstart.ipynb in a Jupyter kernel.

python -m tests.notebook

This executes the notebook in full, in about three minutes on two CPU cores, and writes its outputs
back into the file, which is committed with them. The tests execute a shorter version.
"""

from __future__ import annotations

import pathlib

import nbclient
import nbformat

PATH = pathlib.Path(__file__).parents[1] / "docs" / "quickstart.ipynb"


def execute(parameters: str = "") -> nbformat.NotebookNode:
    """Returns the notebook with fresh outputs.

    Args:
      parameters: Python code that replaces values of the cell with the tag "parameters"; it runs
        after that cell.

    Raises:
      nbclient.exceptions.CellExecutionError: a cell raised an exception.
    """
    notebook = nbformat.read(PATH, as_version=4)
    tagged = [i for i, c in enumerate(notebook.cells) if "parameters" in c.metadata.get("tags", [])]
    if parameters:
        (at,) = tagged
        notebook.cells.insert(at + 1, nbformat.v4.new_code_cell(parameters))
    client = nbclient.NotebookClient(
        notebook, timeout=1800, kernel_name="python3", record_timing=False, coalesce_streams=True
    )
    return client.execute()


def main() -> None:
    notebook = execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            # Warnings and progress bars say nothing to a reader.
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
    # The versions of the interpreter that executed it would change with every machine.
    notebook.metadata["language_info"] = {"name": "python"}
    nbformat.write(notebook, PATH)


if __name__ == "__main__":
    main()
