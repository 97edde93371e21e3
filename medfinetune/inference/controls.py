"""What the system writes, and what it writes where something that it knows is taken away, swapped or given."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import datasets
import torch
from torch import Tensor
from tqdm import tqdm

from medfinetune.data.evidence import Evidence, EvidenceKind, Neighbour
from medfinetune.data.split import join
from medfinetune.decoder.generation import likelihoods
from medfinetune.errors import InputError
from medfinetune.evaluation.cases import FirstImages, references
from medfinetune.evaluation.paired import OWN
from medfinetune.evaluation.shuffling import derangement
from medfinetune.inference.conditions import COPIED, STATED, Condition, Whose
from medfinetune.inference.draft import told
from medfinetune.inference.pipeline import ReportPipeline
from medfinetune.inference.report import WritingOptions
from medfinetune.inference.told_chats import ShownChats, ToldChats


@dataclass
class WrittenReports:
    """What was written of `N` cases.

    Attributes:
        texts: Condition -> a text for each case.
        similarities: Condition -> the cosine of each case's own first image and its text; empty without an encoder.
        evidence: Of each case what the system was told, as JSON can hold it; empty where it is told nothing of any.
        left_out: Condition -> why it could not be asked.
        latency: Of the system, as `StageClock.figures` gives it: what the controls took is not in it.
    """

    texts: dict[str, list[str]] = field(default_factory=dict)
    similarities: dict[str, list[float]] = field(default_factory=dict)
    evidence: list[dict[str, Any]] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    latency: dict[str, dict[str, Any]] = field(default_factory=dict)


class ControlledWriter:
    """Asks a pipeline about the same cases in different ways.

    Attributes:
        others: For each case the place of the case whose images it gets; None where images cannot be shuffled.
    """

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
            InputError: Pairs and chats differ, or there is an index and no encoder; evidence is asked for, and there
                is no index; candidates are asked for, and there is no encoder.
        """
        if list(pairs["id"]) != list(chats["id"]):
            raise InputError("pairs and chats are not of the same ids in the same order; load_cases gives both")
        if pipeline.finder is not None and pipeline.embedder is None:
            raise InputError("index_dir: an index is searched by the encoder that it was made with; give encoder_dir")
        self._pipeline, self._kind, self._options = pipeline, kind, options
        self._pairs, self._chats = pairs, chats
        self._require({OWN: Condition()})
        self._languages = list(pairs["language"])
        self._keys = [list(keys) for keys in pairs["pixel_sha256"]]
        owners = zip(pairs["source"], pairs["patient_id"], strict=True)
        self._patients: list[Hashable | None] = [(source, patient) if patient else None for source, patient in owners]
        self.others, self._why_not = self._shuffle(seed)
        self._embeds = self._embed() if pipeline.embedder is not None else None
        self._found: dict[Whose, list[Evidence]] = {}

    def _shuffle(self, seed: int) -> tuple[list[int] | None, str]:
        """Whose images each case gets, or why there are none to give."""
        # Cases that share one image of several do not swap, and neither do those of a patient, where there are others.
        shared = [(key, row) for row, keys in enumerate(self._keys) for key in keys]
        owned = [(f"patient: {patient}", row) for row, patient in enumerate(self._patients) if patient]
        why = ""
        for links in ([*shared, *owned], shared):
            try:
                groups = join(sorted(links), len(self._keys))
                return derangement(groups, seed, strata=[len(keys) for keys in self._keys]), ""
            except InputError as error:
                why = str(error)
        return None, why

    def write(self, conditions: dict[str, Condition]) -> WrittenReports:
        """Asks in each way, the system's first, and copies the nearest report and the labels of an index.

        Raises:
            InputError: A condition needs an index or an encoder, and there is none.
        """
        self._require(conditions)
        written = WrittenReports()
        if self._kind != "none":
            of_system = (told(one, self._kind, self._options.min_probability) for one in self._evidence("own"))
            written.evidence = [evidence.to_dict() for evidence in of_system]
        for name in sorted(conditions, key=lambda name: name != OWN):
            if conditions[name].needs_others and self.others is None:
                written.left_out[name] = self._why_not
                continue
            written.texts[name] = self._texts(name, conditions[name])
            if name == OWN:
                written.latency = self._pipeline.clock.figures()
        if self._pipeline.finder is not None:
            near = [evidence.neighbours for evidence in self._evidence("own")]
            written.texts[COPIED] = [own[0].text if own else "" for own in near]
            labels = [evidence.labels for evidence in self._evidence("own")]
            if any(labels):
                pairs = zip(labels, self._languages, strict=True)
                written.texts[STATED] = [_sentences([label.stated(lang) for label in own], lang) for own, lang in pairs]
        if self._embeds is not None:
            for name, texts in written.texts.items():
                written.similarities[name] = (self._embed_texts(texts) * self._embeds).sum(dim=1).tolist()
        return written

    def likelihoods(self, conditions: dict[str, Condition]) -> dict[str, tuple[list[float], list[int]]]:
        """How well the decoder foresees the true reports when it sees and is told what it is in `write`.

        A chat may be longer than a prompt by `max_new_tokens`, so that a true report does not push evidence out.

        Returns:
            Condition -> of each case the negative log likelihood of its true report in nats, and its tokens. Conditions
            that cannot be asked are left out.

        Raises:
            InputError: A condition needs an index or an encoder, and there is none.
        """
        self._require(conditions)
        found, known, options = {}, {}, self._options
        for name, condition in conditions.items():
            if condition.needs_others and self.others is None:
                continue
            way = (condition.image, condition.evidence, condition.kind)  # candidates are nothing to a given text
            if way not in known:
                shown, evidences, kind = self._asked(condition)
                known[way] = likelihoods(
                    self._pipeline.decoder,
                    self._pipeline.decoder_processor,
                    ToldChats(shown, evidences, kind, self._languages, options.min_probability),
                    batch_size=options.batch_size,
                    max_length=options.max_length + options.max_new_tokens,
                    date_string=options.date_string,
                    progress=f"likelihoods: {name}",
                )
            found[name] = known[way]
        return found

    def _require(self, conditions: dict[str, Condition]) -> None:
        for name, condition in conditions.items():
            kind, number = condition.kind or self._kind, condition.num_candidates or self._options.num_candidates
            if kind != "none" and condition.evidence in ("own", "other") and self._pipeline.finder is None:
                raise InputError(f"{name}: evidence: {kind} needs an index; recipes/index.py makes it (index_dir)")
            if number > 1 and self._pipeline.embedder is None:
                raise InputError(f"{name}: num_candidates: {number} are ranked by an encoder; give encoder_dir")

    def _asked(self, condition: Condition) -> tuple[ShownChats, Sequence[Evidence | None], EvidenceKind]:
        """The chats with their images, what is told of each, and which parts of that."""
        kind = condition.kind or self._kind
        evidences: Sequence[Evidence | None] = [None] * len(self._languages)
        if kind != "none" and condition.evidence != "nobody":
            evidences = self._evidence(condition.evidence)
        shown = ShownChats(self._chats, self._places(condition.image), blank=condition.image == "nobody")
        return shown, evidences, kind

    def _texts(self, name: str, condition: Condition) -> list[str]:
        number = condition.num_candidates or self._options.num_candidates
        options = {key: value for key, value in vars(self._options).items() if key != "evidence"}
        embeds = self._embeds[self._places(condition.ranked_by)] if self._embeds is not None and number > 1 else None
        return self._pipeline.write(
            *self._asked(condition),
            languages=self._languages,
            image_embeds=embeds,
            progress=f"writing: {name}",
            **options | {"num_candidates": number},
        )

    def _places(self, whose: Whose) -> list[int]:
        if whose == "other":
            assert self.others is not None
            return self.others
        return list(range(len(self._languages)))

    def _evidence(self, whose: Whose) -> list[Evidence]:
        """What is found for each case's own image or for another's; told in the language of the case.

        Of another's image too, the case's own pixels and patient are never told: it would be a way back to the case.
        """
        if whose == "truth":
            return [Evidence([Neighbour("truth", text, 1.0)]) for text in references(self._chats)]
        if whose not in self._found:
            assert self._pipeline.finder is not None
            assert self._embeds is not None
            places = self._places(whose)
            with self._pipeline.clock.stage("lookup", num_items=len(places)):
                self._found[whose] = self._pipeline.finder.find(
                    self._embeds[places],
                    [{*self._keys[place], *own} for place, own in zip(places, self._keys, strict=True)],
                    [
                        frozenset({self._patients[place], own} - {None})
                        for place, own in zip(places, self._patients, strict=True)
                    ],
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


def _sentences(words: Sequence[str], language: str) -> str:
    return "".join(f"{one}。" for one in words) if language == "zh" else " ".join(f"{one}." for one in words)
