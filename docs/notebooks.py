"""MkDocs hook: runs the notebooks and makes pages of them.

They are kept without outputs. A page shows those of the run that built the site, and
from it the notebook can be downloaded with them.
"""

import os
from typing import Any

import nbformat
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from nbconvert import MarkdownExporter
from nbconvert.preprocessors import ExecutePreprocessor

DOWNLOAD = "\n[Download this notebook]({path}), with its outputs.\n"

# Inherited by the processes in which the notebooks run.
os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


class NotebookPage(File):
    """A notebook that becomes a page, as Markdown files do."""

    def is_documentation_page(self) -> bool:
        return True


def on_files(files: Files, config: MkDocsConfig, **kwargs: Any) -> Files:
    for notebook in [file for file in files if file.src_uri.endswith(".ipynb")]:
        files.remove(notebook)
        for file in run(notebook, config):
            files.append(file)
    return files


def run(file: File, config: MkDocsConfig) -> list[File]:
    """The page of a notebook, its figures, and the notebook with its outputs."""
    notebook = nbformat.reads(file.content_string, as_version=4)
    ExecutePreprocessor(timeout=600, coalesce_streams=True).preprocess(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":  # what libraries log about the machine
            cell.outputs = [out for out in cell.outputs if out.get("name") != "stderr"]

    # Beside the page: `name.ipynb` becomes `name/index.html`.
    markdown, resources = MarkdownExporter().from_notebook_node(
        notebook, {"output_files_dir": file.name, "unique_key": "figure"}
    )
    download = f"{file.name}/{file.name}.ipynb"
    beside = {download: nbformat.writes(notebook), **resources["outputs"]}
    markdown = markdown.replace("![png]", "![What the code above draws]")
    markdown += DOWNLOAD.format(path=download)
    folder = file.src_uri.removesuffix(f"{file.name}.ipynb")
    return [
        NotebookPage.generated(config, file.src_uri, content=markdown),
        *(
            File.generated(config, folder + path, content=content)
            for path, content in beside.items()
        ),
    ]
