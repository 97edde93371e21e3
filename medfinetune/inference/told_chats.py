"""Chats as the decoder gets them: whose images it sees, and what it is told of them."""

from collections.abc import Sequence
from typing import Any

import datasets
from PIL import Image

from medfinetune.data.evidence import Evidence, EvidenceKind, evidence_words, with_evidence
from medfinetune.data.text import language_of
from medfinetune.errors import InputError


class ShownChats(Sequence[dict[str, Any]]):
    """Chats with their own images, those of others, or black ones; opened when they are asked for."""

    def __init__(self, chats: datasets.Dataset, image_rows: Sequence[int], blank: bool = False):
        self._ids, self._messages = list(chats["id"]), chats["messages"]
        self._images = chats.select_columns("images")
        self._image_rows, self._blank = image_rows, blank

    def __len__(self) -> int:
        return len(self._image_rows)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        images = self._images[self._image_rows[place]]["images"]
        if self._blank:
            images = [Image.new("RGB", image.size) for image in images]
        return {"id": self._ids[place], "images": images, "messages": self._messages[place]}


class ToldChats(Sequence[dict[str, Any]]):
    """Chats with evidence in their prompts, opened when they are asked for."""

    def __init__(
        self,
        chats: Sequence[dict[str, Any]],
        evidences: Sequence[Evidence | None],
        kind: EvidenceKind,
        languages: Sequence[str] | None = None,
        min_probability: float = 0.0,
    ):
        """
        Args:
            chats: Rows with `messages`.
            evidences: What is told of each; None where nothing is.
            kind: Which parts of it.
            languages: That the evidence is told in; where left out, a chat's `language`, else `zh` where it asks in
                Chinese.
            min_probability: Labels less probable than this are not told.

        Raises:
            InputError: There is not as much evidence as there are chats.
        """
        if len(evidences) != len(chats):
            raise InputError(f"evidences: {len(evidences)} were given for {len(chats)} chats")
        self._chats, self._evidences, self._languages = chats, evidences, languages
        self._kind, self._min_probability = kind, min_probability

    def __len__(self) -> int:
        return len(self._chats)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        row = dict(self._chats[place])
        language = self._languages[place] if self._languages is not None else _language(row)
        row["messages"] = with_evidence(row["messages"], self._words(place, language))
        return row

    def sizes(self) -> list[int]:
        """About how many characters each is told; no chat is opened."""
        return [len(self._words(place, "en")) for place in range(len(self))]

    def _words(self, place: int, language: str) -> str:
        return evidence_words(self._evidences[place] or Evidence(), self._kind, language, self._min_probability)


def _language(row: dict[str, Any]) -> str:
    asked = str([turn["content"] for turn in row["messages"] if turn["role"] == "user"])
    return row.get("language") or language_of(asked)
