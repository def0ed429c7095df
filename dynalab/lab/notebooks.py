"""Find the shipped notebooks and run one headless, in this very interpreter, so that it repeats byte for byte.

Papermill injects the parameters and runs the cells; this module gives it a kernel that no user's Jupyter or IPython
configuration can change, and takes everything out of the executed notebook that differs from run to run.
"""

from __future__ import annotations

import itertools
import os
import re
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynalab.errors import ReportError

if TYPE_CHECKING:
    from nbformat import NotebookNode

_PACKAGE = Path(__file__).resolve().parents[1]


def notebook_path(name: str) -> Path:
    """Where a shipped notebook lies: ``notebooks/`` of the checkout, or ``dynalab/notebooks/`` of an installed wheel.

    Parameters
    ----------
    name : str
        With or without ``.ipynb``.

    Raises
    ------
    ReportError
        If there is no such notebook.
    """
    file = name if name.endswith(".ipynb") else f"{name}.ipynb"
    # The checkout first: an editable install must run the notebook that is being edited.
    for folder in (_PACKAGE.parent / "notebooks", _PACKAGE / "notebooks"):
        if (folder / file).is_file():
            return folder / file
    known = sorted(p.stem for folder in (_PACKAGE.parent, _PACKAGE) for p in (folder / "notebooks").glob("*.ipynb"))
    raise ReportError(f"no notebook {name!r}; there is {', '.join(known) or 'none: reinstall dynalab'}")


def run_notebook(
    source: str | os.PathLike[str],
    parameters: Mapping[str, Any],
    folder: str | os.PathLike[str],
    *,
    progress: bool = True,
    timeout: float | None = None,
) -> NotebookNode:
    """Run a notebook with Papermill and return it executed, without anything that differs from run to run.

    Parameters
    ----------
    source : path-like
        The notebook; it is not changed.
    parameters : mapping
        Put behind the cell tagged ``parameters``; plain literals. None leaves the notebook's own defaults.
    folder : path-like
        Working directory of the kernel. It never appears in the result: parameters should say ``"."``.
    progress : bool
        Show a bar per cell on a terminal.
    timeout : float, optional
        Seconds that one cell may take.

    Raises
    ------
    ReportError
        If a cell fails or the kernel dies. Its cause holds the cell's traceback.
    """
    import nbformat
    import papermill
    from jupyter_client.kernelspec import NoSuchKernel
    from nbclient.exceptions import CellTimeoutError, DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    source = Path(source)
    notebook = nbformat.read(source, as_version=4)
    own_ids = {cell.get("id") for cell in notebook.cells}
    with tempfile.TemporaryDirectory(prefix="dynalab-kernel-", ignore_cleanup_errors=True) as scratch:
        try:
            executed = papermill.execute_notebook(
                notebook,
                None,
                parameters=dict(parameters),
                kernel_name="python3",
                language="python",
                progress_bar={"desc": source.stem, "leave": False, "disable": None} if progress else False,
                cwd=os.fspath(folder),
                kernel_manager_class=_kernel_manager_class(Path(scratch)),
                execution_timeout=timeout,
            )
        except PapermillExecutionError as error:
            reason = next((line.strip() for line in error.evalue.splitlines() if line.strip()), "no message")
            raise ReportError(f"{source.name}: cell {error.exec_count} failed: {error.ename}: {reason}") from error
        except CellTimeoutError as error:
            raise ReportError(f"{source.name}: a cell took longer than {timeout:g} s") from error
        except (DeadKernelError, NoSuchKernel) as error:
            raise ReportError(f"{source.name}: the kernel died, perhaps for want of memory") from error
        except RuntimeError as error:
            if "Kernel" not in str(error):
                raise
            raise ReportError(f"{source.name}: the kernel did not start: {str(error).splitlines()[0]}") from error
    return settle(executed, own_ids, {os.path.realpath(folder), os.path.abspath(folder)})


def settle(notebook: NotebookNode, own_ids: set[str | None], folders: set[str]) -> NotebookNode:
    """Take out of an executed notebook what differs from run to run, and what only mattered while it ran.

    Times, ids that Papermill, xarray and pandas draw at random, memory addresses, progress bars and warnings (stderr
    names temporary files) and the names of temporary folders.

    Parameters
    ----------
    notebook : NotebookNode
        Changed in place, and returned.
    own_ids : set of str
        Cell ids of the source notebook; every other id becomes ``cell-<index>`` or ``injected-parameters``.
    folders : set of str
        Folders to write as ``.``.
    """
    notebook.metadata.pop("papermill", None)
    notebook.metadata.pop("widgets", None)
    notebook.metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
    rename = _namer()
    for index, cell in enumerate(notebook.cells):
        for key in ("papermill", "execution", "ExecuteTime"):
            cell.metadata.pop(key, None)
        # Papermill tags every cell it has seen; an empty list says no more than none.
        if not cell.metadata.get("tags", True):
            del cell.metadata["tags"]
        injected = "injected-parameters" in cell.metadata.get("tags", ())
        if injected or cell.get("id") not in own_ids:
            cell["id"] = "injected-parameters" if injected else f"cell-{index}"
        if cell.cell_type == "code":
            cell.outputs = [_settled(output, rename, folders) for output in _kept(cell.outputs)]
    return notebook


def _kept(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """Keep the outputs that a reader of the finished notebook needs; neighbouring pieces of one stream become one."""
    kept: list[NotebookNode] = []
    for output in outputs:
        if output.output_type == "stream":
            if output.name == "stderr":
                continue
            if kept and kept[-1].output_type == "stream":
                kept[-1].text += output.text
                continue
        elif "application/vnd.jupyter.widget-view+json" in output.get("data", {}):
            continue
        kept.append(output)
    return kept


def _settled(output: NotebookNode, rename: Callable[[str], str], folders: set[str]) -> NotebookNode:
    def clean(text: Any) -> Any:
        if not isinstance(text, str):
            return text
        for folder in folders:
            text = text.replace(folder, ".")
        return rename(text)

    if output.output_type == "stream":
        output.text = clean(output.text)
    for mime, value in output.get("data", {}).items():
        if mime.startswith("text/") or mime == "image/svg+xml":
            output.data[mime] = clean(value)
    return output


def _namer() -> Callable[[str], str]:
    """Return a function that numbers random ids in order of appearance, equal ones alike throughout a notebook."""
    # A version-4 UUID (xarray's HTML), the table id of a pandas Styler, the address in a default repr.
    pattern = re.compile(
        r"(?P<uuid>\b[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}\b)"
        r"|(?P<styler>\bT_[0-9a-f]{5}(?=\b|_))"
        r"|(?P<address>(?<= at )0x[0-9a-f]{6,}\b)"
    )
    names: dict[str, str] = {}
    counter = itertools.count(1)

    def name(match: re.Match[str]) -> str:
        found = match[0]
        if found not in names:
            number = next(counter)
            shapes = {
                "uuid": f"00000000-0000-4000-8000-{number:012d}",
                "styler": f"T_{number:05d}",
                "address": f"0x{number:06d}",
            }
            names[found] = shapes[str(match.lastgroup)]
        return names[found]

    return lambda text: pattern.sub(name, text)


def _kernel_manager_class(scratch: Path) -> type:
    """Kernel manager that starts this interpreter, with all Jupyter and IPython state in `scratch`.

    The kernel specs of the user or the system are not asked: one named ``python3`` often belongs to another
    environment, which has no dynalab, or another one.
    """
    from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager
    from traitlets import default

    # The kernel's own log would write across the progress bar: it calls being asked to stop an error.
    options = ["--HistoryManager.enabled=False", "--log-level=CRITICAL"]
    spec = KernelSpec(
        argv=[sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}", *options],
        display_name="Python 3",
        language="python",
        env=_kernel_environment(scratch),
    )

    class ThisInterpreter(KernelSpecManager):
        def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
            return spec

    class IsolatedKernelManager(AsyncKernelManager):
        @default("kernel_spec_manager")
        def _this_interpreter(self) -> KernelSpecManager:
            return ThisInterpreter()

        @default("transport")
        def _sockets_in_scratch(self) -> str:
            # Nobody else on the machine can reach files in a private folder, unlike TCP ports. The kernel limits the
            # path of a socket to 107 bytes, which a long TMPDIR can exceed.
            return "ipc" if len(os.fsencode(scratch)) < 80 else "tcp"

        @default("connection_file")
        def _inside_scratch(self) -> str:
            return str(scratch / "kernel.json")

    return IsolatedKernelManager


def _kernel_environment(scratch: Path) -> dict[str, str]:
    """Environment variables that keep users' settings out of a kernel and its results repeatable."""
    # Relative entries would point elsewhere from the kernel's working directory.
    path = [os.path.abspath(entry) for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    if str(_PACKAGE.parent) not in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        path.insert(0, str(_PACKAGE.parent))
    return {
        "IPYTHONDIR": str(scratch / "ipython"),
        "JUPYTER_CONFIG_DIR": str(scratch / "config"),
        "JUPYTER_DATA_DIR": str(scratch / "data"),
        "JUPYTER_NO_CONFIG": "1",
        "JUPYTER_RUNTIME_DIR": str(scratch / "runtime"),
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        # Iteration order of sets of strings must not reach a result.
        "PYTHONHASHSEED": "0",
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(path)),
        "PYTHONSTARTUP": "",
        # Bars belong to a reader at a screen; the one per cell is drawn outside the kernel.
        "TQDM_DISABLE": "1",
    }
