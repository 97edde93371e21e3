"""Finds what is told of an image beside its pixels: reports of similar training images, and probable labels."""

from collections.abc import Collection, Hashable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from medfinetune.data.evidence import Evidence, LabelEvidence, Neighbour
from medfinetune.evaluation.tasks import Task
from medfinetune.inference.index import ImageIndex, Match


class EvidenceFinder:
    """Looks images up in an index.

    A neighbour is left out where its cosine lies more than `max_similarity_drop` below the nearest's. Two neighbours
    with one text are both told: with templated captions they are two votes. A task is told of an image whose nearest
    neighbour has a truth in it, or, where no image of the index has, is of one of the sources that the task names: a
    skin photograph has no grade of the knee.
    """

    def __init__(self, index: ImageIndex, num_neighbours: int | None = None, max_similarity_drop: float | None = None):
        """
        Args:
            index: Of the training images.
            num_neighbours: Reports that are told at most; as the index was made for where left out.
            max_similarity_drop: In cosine; as the index says where left out, and nothing is cut where it does not.
        """
        self.index = index
        self.num_neighbours = num_neighbours or index.info.get("num_neighbours", 3)
        self.max_similarity_drop = index.info.get("max_similarity_drop")
        if max_similarity_drop is not None:
            self.max_similarity_drop = max_similarity_drop
        self._known = set(index.info.get("known", ()))

    @classmethod
    def load(cls, index_dir: str | Path, encoder_hash: str | None = None, **options: object) -> "EvidenceFinder":
        """Opens an index of an encoder; errors are those of `ImageIndex.load`."""
        return cls(ImageIndex.load(index_dir, encoder_hash), **options)

    def find(
        self,
        image_embeds: Tensor,
        pixel_keys: Sequence[Collection[str]] | None = None,
        patients: Sequence[Hashable | None] | None = None,
        languages: Sequence[str] | None = None,
    ) -> list[Evidence]:
        """The evidence of each image; images of its patient and of its pixels are never told.

        Args:
            image_embeds: `(Q, D)`, unit norm.
            pixel_keys: For each query the hashes of its images' pixels.
            patients: For each query None, `(source, id)`, an id alone, which means a patient of any source, or a
                frozenset of such.
            languages: That neighbours' reports are wanted in, where they have one in it; `en` where left out.
        """
        matches = self.index.nearest(image_embeds.numpy(), self.num_neighbours, pixel_keys, patients)
        languages = languages if languages is not None else ["en"] * len(matches)
        labels = self._labels(image_embeds, matches)
        return [
            Evidence(self._neighbours(near, language), tuple(told))
            for near, language, told in zip(matches, languages, labels, strict=True)
        ]

    def is_unlike_training(self, evidence: Evidence) -> bool:
        """Whether the nearest training image is less similar than for 99 of 100 validation images.

        False where the index does not know how similar those are.
        """
        limit = self.index.info.get("unlike_below")
        if limit is None:
            return False
        return not evidence.neighbours or evidence.neighbours[0].similarity < limit

    def _neighbours(self, matches: Sequence[Match], language: str) -> tuple[Neighbour, ...]:
        limit = -1.0
        if matches and self.max_similarity_drop is not None:
            limit = matches[0].similarity - self.max_similarity_drop
        told = []
        for match in matches:
            if match.similarity < limit - 1e-9:
                break
            pairs = match.row["pairs"]
            pair = next((pair for pair in pairs if pair["language"] == language), pairs[0])
            told.append(Neighbour(pair["id"], pair["text"], match.similarity))
        return tuple(told)

    def _labels(self, image_embeds: Tensor, matches: Sequence[Sequence[Match]]) -> list[list[LabelEvidence]]:
        told: list[list[LabelEvidence]] = [[] for _ in matches]
        for task in self.index.labels:
            asked = [i for i, near in enumerate(matches) if self._belongs(task.task, near[:1])]
            if asked:
                found = task.evidence(image_embeds[torch.tensor(asked)])
                for i, label in zip(asked, found, strict=True):
                    told[i].append(label)
        return told

    def _belongs(self, task: Task, nearest: Sequence[Match]) -> bool:
        if task.name in self._known:
            return any(task.name in match.row["known"] for match in nearest)
        return not task.sources or any(pair["source"] in task.sources for m in nearest for pair in m.row["pairs"])
