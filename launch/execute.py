"""Executes the script of a notebook (jupytext's percent format) and writes the notebook with its outputs.

    python launch/execute.py notebooks/01_first_run.py notebooks/01_first_run.ipynb
    python launch/execute.py notebooks/01_first_run.py /tmp/short.ipynb "OVERRIDES = ['steps=100']"

The third argument is code that is put behind the cell tagged "parameters".
"""

import sys
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient


def execute(script: Path, parameters: str = "") -> nbformat.NotebookNode:
    """The executed notebook; its kernel begins in the script's folder, as Jupyter's does.

    Raises:
        CellExecutionError: with the cell and the traceback.
    """
    notebook = jupytext.read(script)
    if parameters:
        tagged = [i for i, c in enumerate(notebook.cells) if "parameters" in c.metadata.get("tags", ())]
        at = tagged[0] if tagged else sys.exit(f"{script} has no cell tagged parameters, and takes none.")
        notebook.cells.insert(at + 1, nbformat.v4.new_code_cell(parameters))
    notebook.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    resources = {"metadata": {"path": str(script.resolve().parent)}}
    NotebookClient(notebook, timeout=None, record_timing=False, resources=resources).execute()
    for i, cell in enumerate(notebook.cells):
        cell.id = str(i)  # random ids would change with each execution
        if cell.cell_type == "code":
            cell.outputs = merged(cell.outputs)
    del notebook.metadata["language_info"]  # the version of whoever executed it last
    return notebook


def merged(outputs: list[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    """Texts that follow each other on one stream as one; the home of whoever executed them is ~."""
    found = []
    for output in outputs:
        if output.output_type == "stream":
            output.text = output.text.replace(str(Path.home()), "~")
        if found and output.output_type == "stream" == found[-1].output_type and output.name == found[-1].name:
            found[-1].text += output.text
        else:
            found.append(output)
    return found


if __name__ == "__main__":
    source, target, *changes = sys.argv[1:]
    nbformat.write(execute(Path(source), "\n".join(changes)), target)
    print(f"written to {target}")
