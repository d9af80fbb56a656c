"""Lists the recipes: python -m recipes"""

import ast
import pkgutil
from pathlib import Path


def main() -> None:
    """Prints the name and the first docstring line of each recipe, without importing them."""
    folder = Path(__file__).parent
    names = [module.name for module in pkgutil.iter_modules([str(folder)]) if not module.ispkg and module.name[0] != "_"]
    print("Start a recipe with python -m recipes.NAME. List its flags with --help.\n")
    for name in names:
        docstring = ast.get_docstring(ast.parse((folder / f"{name}.py").read_text(encoding="utf-8"))) or ""
        print(f"{name:<{max(map(len, names))}}  {docstring.partition(chr(10))[0]}")


if __name__ == "__main__":
    main()
