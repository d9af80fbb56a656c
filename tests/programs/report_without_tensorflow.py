"""Imports only the report, without `callbacks/__init__.py`, and prints whether TensorFlow and Keras were imported.

python tests/programs/report_without_tensorflow.py DIRECTORY_OF_CALLBACKS
"""

import importlib
import sys
from types import ModuleType

if __name__ == "__main__":
    package = ModuleType("callbacks")
    package.__path__ = [sys.argv[1]]
    sys.modules["callbacks"] = package
    importlib.import_module("callbacks.report.report")
    print("tensorflow" in sys.modules, "keras" in sys.modules)
