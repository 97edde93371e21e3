"""Generated images with known findings, in the published layouts of the four sources: for the demo and the tests."""

from medfinetune.data.phantom.draw import draw
from medfinetune.data.phantom.findings import ATTRIBUTES, report, sentences

__all__ = ["ATTRIBUTES", "draw", "report", "sentences"]
