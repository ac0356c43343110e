"""What pages are made of in tests, and what a reader of HTML finds in them."""

from __future__ import annotations

import json
from html.parser import HTMLParser

import numpy as np

RNG = np.random.default_rng(0)
PERCENT = RNG.integers(0, 101, (2, 3, 2, 4, 4, 4), np.uint8)
TRUTH = RNG.random((2, 4, 4, 4)) < 0.5
IMAGES = RNG.integers(0, 256, (2, 2, 6, 7, 3), np.uint8)
DECODED = RNG.integers(0, 256, (2, 3, 2, 6, 7, 3), np.uint8)
EVERYTHING = {"percent": PERCENT, "truth": TRUTH, "images": IMAGES, "decoded": DECODED}
ROW = {
    "iterations": 1,
    "rate": {"nominal": 384.0},
    "iou": {"mean": 0.3},
    "objects": [
        {"id": "b", "category": "chair", "iou": 0.25, "psnr_db": 18.0},
        {"id": "a", "category": "table", "iou": 0.75, "psnr_db": 20.0},
    ],
}


class Document(HTMLParser):
    """The elements of a page as a reader of HTML sees them."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict]] = []
        self.texts: dict[int, str] = {}
        self.closed: set[int] = set()
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        index = len(self.elements) - 1
        if index not in self.closed:  # what comes after an element is not its text
            self.texts[index] = self.texts.get(index, "") + data

    def handle_endtag(self, tag: str) -> None:
        self.closed.add(len(self.elements) - 1)

    def all(self, tag: str) -> list[tuple[dict, str]]:
        """Attributes and text of every element of a kind."""
        return [
            (attributes, self.texts.get(index, ""))
            for index, (name, attributes) in enumerate(self.elements)
            if name == tag
        ]


def data_of(text: str) -> dict:
    ((attributes, content), _) = Document(text).all("script")
    assert attributes == {"type": "application/json", "id": "data"}
    return json.loads(content)
