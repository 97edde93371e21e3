"""Generated images with known findings, in the published layouts of the four sources: for the demo and the tests."""

from medfinetune.data.phantom.draw import draw
from medfinetune.data.phantom.findings import ATTRIBUTES, report, sentences
from medfinetune.data.phantom.folders import Sizes, write_raw_folders

__all__ = ["ATTRIBUTES", "Sizes", "draw", "report", "sentences", "write_raw_folders"]
