"""Held-out cases whose images tell which case they belong to, in English and Chinese."""

import json

import datasets
import pytest
from PIL import Image

from medfinetune.data.chat import chat
from medfinetune.data.schema import FEATURES

SIDES = ("left", "right")


@pytest.fixture
def pairs():
    """20 images with a report in each language; the red channel is the number of the case."""

    def rows():
        for number in range(20):
            for language in ("en", "zh"):
                side = SIDES[number % 2]
                yield {
                    **dict.fromkeys(FEATURES, ""),
                    "id": f"case-{number}-{language}",
                    "images": [Image.new("RGB", (8, 8), (number, 0, 0))],
                    "pixel_sha256": [f"sha{number}"],
                    "text": f"Case {number}. {side} effusion." if language == "en" else f"第{number}例,{side}积液。",
                    "language": language,
                    "task": "report",
                    "split": "test",
                    "metadata": json.dumps({"side": side}),
                }

    features = datasets.Features(FEATURES | {"images": datasets.List(datasets.Image())})
    return datasets.Dataset.from_list(list(rows()), features=features)


@pytest.fixture
def chats(pairs):
    features = datasets.Features({"id": datasets.Value("string"), "messages": datasets.Json()})
    features |= {"images": datasets.List(datasets.Image()), "language": datasets.Value("string")}
    rows = [chat(row) for row in pairs]
    return datasets.Dataset.from_list([{key: row[key] for key in features} for row in rows], features=features)
