"""What the system writes, and what it writes where something that it knows is taken away, swapped or given."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import datasets
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from medfinetune.data.evidence import Evidence, EvidenceKind, Neighbour
from medfinetune.errors import InputError
from medfinetune.evaluation.cases import FirstImages, pixel_keys, references
from medfinetune.evaluation.paired import OWN
from medfinetune.evaluation.shuffling import derangement
from medfinetune.inference.pipeline import ReportPipeline
from medfinetune.inference.report import WritingOptions

Whose = Literal["own", "other", "nobody", "truth"]


@dataclass(frozen=True)
class Condition:
    """One way to ask about every case.

    Attributes:
        image: Whose image the decoder sees; `nobody`'s is black, of the same size.
        evidence: Whose evidence it is told; `truth` is the case's own true report.
        ranked_by: Whose image candidates are held against.
        kind: Which parts of the evidence; the system's where left out.
        num_candidates: The system's where left out.
    """

    image: Whose = "own"
    evidence: Whose = "own"
    ranked_by: Whose = "own"
    kind: EvidenceKind | None = None
    num_candidates: int | None = None

    @property
    def needs_others(self) -> bool:
        """Whether images have to be shuffled among the cases."""
        return "other" in (self.image, self.evidence, self.ranked_by)


CONTROLS = {
    "shuffled_everything": Condition(image="other", evidence="other", ranked_by="other"),
    "shuffled_decoder": Condition(image="other"),
    "blank_image": Condition(image="nobody"),
    "no_evidence": Condition(evidence="nobody", kind="none"),
    "random_evidence": Condition(evidence="other"),
    "true_report_as_evidence": Condition(evidence="truth", kind="reports"),
}
"""Those in which the decoder writes; `report_suite.CONDITIONS` says them in words."""
COPIED = "nearest_report_copied"
_OF_EVIDENCE = ("shuffled_decoder", "no_evidence", "random_evidence", "true_report_as_evidence")


@dataclass
class WrittenReports:
    """What was written of `N` cases.

    Attributes:
        texts: Condition -> a text for each case.
        similarities: Condition -> the cosine of each case's own first image and its text.
        evidence: Of each case what the system was told, as JSON can hold it; empty where there is no index.
        left_out: Condition -> why it could not be asked.
    """

    texts: dict[str, list[str]] = field(default_factory=dict)
    similarities: dict[str, list[float]] = field(default_factory=dict)
    evidence: list[dict[str, Any]] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)


def conditions_of(kind: EvidenceKind, variants: Sequence[str] = ()) -> dict[str, Condition]:
    """The system itself, its controls, and variants of it.

    Args:
        kind: Of the system's evidence. Without any, the controls of evidence are left out.
        variants: `labels`, `reports`, `both` (as `evidence_<kind>`), or `reranked_<number of candidates>`.

    Raises:
        InputError: A variant is none of these.
    """
    controls = {name: one for name, one in CONTROLS.items() if kind != "none" or name not in _OF_EVIDENCE}
    found = {OWN: Condition()} | controls
    for variant in variants:
        number = variant.removeprefix("reranked_")
        if variant in ("labels", "reports", "both"):
            found[f"evidence_{variant}"] = Condition(kind=variant)
        elif number != variant and number.isdigit() and int(number) > 1:
            found[variant] = Condition(num_candidates=int(number))
        else:
            raise InputError(f"variants: {variant!r} is none of labels, reports, both, reranked_8")
    return found


class ControlledWriter:
    """Asks a pipeline about the same cases in different ways."""

    def __init__(
        self,
        pipeline: ReportPipeline,
        pairs: datasets.Dataset,
        chats: datasets.Dataset,
        kind: EvidenceKind,
        options: WritingOptions,
        seed: int = 0,
    ):
        """
        Args:
            pipeline: With an index where evidence is asked for.
            pairs: The columns of `load_pairs`.
            chats: Of the same ids in the same order.
            kind: Of the system's evidence.
            options: How it writes; `evidence` is not read.
            seed: Shuffles the images.

        Raises:
            InputError: Evidence is asked for, and there is no index; candidates are asked for, and there is no encoder.
        """
        if kind != "none" and pipeline.finder is None:
            raise InputError(f"evidence: {kind} needs an index; recipes/index.py makes it (index_dir)")
        if options.num_candidates > 1 and pipeline.embedder is None:
            raise InputError("num_candidates: are ranked by an encoder; give encoder_dir")
        self._pipeline, self._kind, self._options = pipeline, kind, options
        self._pairs, self._chats = pairs, chats
        self._languages = list(pairs["language"])
        self._keys = [list(keys) for keys in pairs["pixel_sha256"]]
        owners = zip(pairs["source"], pairs["patient_id"], strict=True)
        self._patients: list[Hashable | None] = [(source, patient) if patient else None for source, patient in owners]
        self._others: list[int] | None = None
        self._why_not = ""
        try:
            self._others = derangement(pixel_keys(pairs), seed, strata=[len(keys) for keys in self._keys])
        except InputError as error:
            self._why_not = str(error)
        self._embeds = self._embed() if pipeline.embedder is not None else None
        self._found: dict[Whose, list[Evidence]] = {}

    def write(self, conditions: dict[str, Condition]) -> WrittenReports:
        """Asks in each way, and copies the nearest report where there is an index."""
        written = WrittenReports()
        if self._pipeline.finder is not None:
            own = self._evidence("own")
            written.evidence = [evidence.to_dict() for evidence in own]
            written.texts[COPIED] = [one.neighbours[0].text if one.neighbours else "" for one in own]
        for name, condition in conditions.items():
            if condition.needs_others and self._others is None:
                written.left_out[name] = self._why_not
                continue
            written.texts[name] = self._texts(name, condition)
        if self._embeds is not None:
            for name, texts in written.texts.items():
                written.similarities[name] = (self._embed_texts(texts) * self._embeds).sum(dim=1).tolist()
        return written

    def _texts(self, name: str, condition: Condition) -> list[str]:
        kind = condition.kind or self._kind
        number = condition.num_candidates or self._options.num_candidates
        options = {key: getattr(self._options, key) for key in self._options.__dataclass_fields__ if key != "evidence"}
        embeds = self._embeds[self._places(condition.ranked_by)] if self._embeds is not None and number > 1 else None
        evidences: Sequence[Evidence | None] = [None] * len(self._languages)
        if kind != "none" and condition.evidence != "nobody":
            evidences = self._evidence(condition.evidence)
        return self._pipeline.write(
            ShownChats(self._chats, self._places(condition.image), blank=condition.image == "nobody"),
            evidences,
            kind,
            languages=self._languages,
            image_embeds=embeds,
            progress=f"writing: {name}",
            **options | {"num_candidates": number},
        )

    def _places(self, whose: Whose) -> list[int]:
        if whose == "other":
            assert self._others is not None
            return self._others
        return list(range(len(self._languages)))

    def _evidence(self, whose: Whose) -> list[Evidence]:
        """What is found for each case's own image or for another's; told in the language of the case."""
        if whose == "truth":
            return [Evidence([Neighbour("truth", text, 1.0)]) for text in references(self._chats)]
        if whose not in self._found:
            assert self._pipeline.finder is not None
            assert self._embeds is not None
            places = self._places(whose)
            with self._pipeline.clock.stage("lookup", num_items=len(places)):
                self._found[whose] = self._pipeline.finder.find(
                    self._embeds[places],
                    [self._keys[place] for place in places],
                    [self._patients[place] for place in places],
                    self._languages,
                )
        return self._found[whose]

    def _embed(self) -> Tensor:
        """Each distinct first image once: Chinese and English reports often share one."""
        first = {keys[0]: row for row, keys in reversed(list(enumerate(self._keys)))}
        images, size, embeds = FirstImages(self._pairs, list(first.values())), self._options.batch_size, []
        for start in tqdm(range(0, len(images), size), desc="embedding images", unit="batch", leave=False):
            batch = images[start : start + size]
            with self._pipeline.clock.stage("embedding", num_items=len(batch)):
                embeds.append(self._pipeline.embedder.images(batch))
        places = {key: place for place, key in enumerate(first)}
        return torch.cat(embeds)[[places[keys[0]] for keys in self._keys]]

    def _embed_texts(self, texts: Sequence[str]) -> Tensor:
        size = max(64, self._options.batch_size)
        return torch.cat(
            [self._pipeline.embedder.texts(texts[start : start + size]) for start in range(0, len(texts), size)]
        )


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
