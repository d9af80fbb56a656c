"""The folders of a package import in one direction."""

import ast

import pytest
from processes import ROOT

ORDER = {
    "callbacks": ["", "model", "disk", "counting", "state", "curves", "resuming", "saving", "report"],
    "launch": ["", "command_line", "network", "node", "horovod", "run"],
}


def imported_folders(path, package):
    """Returns the folders of a package that a file imports; "" for a file of the package itself."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == package:
            parts = node.module.split(".")
            yield parts[1] if len(parts) > 1 and (ROOT / package / parts[1]).is_dir() else ""


@pytest.mark.parametrize("package", ORDER)
def test_a_folder_imports_only_folders_before_it(package):
    order = ORDER[package]
    folders = [path for path in (ROOT / package).iterdir() if (path / "__init__.py").exists()]
    assert {folder.name for folder in folders} == set(order) - {""}
    files = [path for path in (ROOT / package).rglob("*.py") if not path.name.startswith("__")]
    wrong = [
        f"{path.relative_to(ROOT)} imports {other}"
        for path in files
        for other in imported_folders(path, package)
        if order.index(other) > order.index(path.parent.name if path.parent in folders else "")
    ]
    assert files and wrong == []


@pytest.mark.parametrize("package", ORDER)
def test_the_readme_lists_the_folders_in_this_order(package):
    tables = (ROOT / package / "README.md").read_text().split("## Files")[1]
    places = [tables.index(f"| `{folder}/`") for folder in ORDER[package][1:]]
    assert places == sorted(places)
