"""Data sets by name or path, decoded into memory as tensors."""

from common.datasets.dataset import DataSet
from common.datasets.files import load_examples, save_examples
from common.datasets.originals import part_of_original
from common.datasets.registry import NAMES, find, image_sizes, load

__all__ = ["NAMES", "DataSet", "find", "image_sizes", "load", "load_examples", "part_of_original", "save_examples"]
