"""Data sets by name or path, decoded into memory as tensors."""

from common.datasets.dataset import DataSet
from common.datasets.files import load_examples, save_examples
from common.datasets.registry import NAMES, load

__all__ = ["NAMES", "DataSet", "load", "load_examples", "save_examples"]
