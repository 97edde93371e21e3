"""From a picture to a report: the encoder finds, the decoder writes, the encoder checks."""

import time
from collections.abc import Generator, Hashable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from medfinetune.data.evidence import Evidence, EvidenceKind
from medfinetune.data.unreadable import UnreadableImage
from medfinetune.decoder.collator import MllamaCollator
from medfinetune.decoder.generation import generate_candidates
from medfinetune.decoder.model import load_decoder
from medfinetune.encoder.model import load_encoder
from medfinetune.errors import InputError
from medfinetune.evaluation.latency import StageClock
from medfinetune.evaluation.lexicon import Lexicon, load_lexicon
from medfinetune.inference.draft import Draft, told, unwritten
from medfinetune.inference.embedder import Embedder
from medfinetune.inference.evidence import EvidenceFinder
from medfinetune.inference.fingerprint import encoder_hash
from medfinetune.inference.index import ImageIndex
from medfinetune.inference.report import Report, ReportRequest, Unwritten, WritingOptions, requests_of
from medfinetune.inference.rerank import Candidate, rank_candidates
from medfinetune.inference.told_chats import ToldChats
from medfinetune.inference.trained import trained_evidence, trained_num_neighbours


class ReportPipeline:
    """Writes reports of images.

        pipeline = ReportPipeline.from_pretrained("runs/demo/encoder", "runs/demo/decoder", index="runs/demo/index")
        for report in pipeline(["a.png", "b.dcm"], languages="zh", num_candidates=8):
            print(report.text, report.match_probability, report.warnings)

    Attributes:
        trained_with: The evidence that the decoder was trained with, which it is told where nothing else is asked for;
            None where nobody says.
        clock: Seconds by stage since the pipeline was made: `embedding`, `lookup`, `first_token`, `per_token` and
            `scoring`.
    """

    def __init__(
        self,
        encoder: Any,
        encoder_processor: Any,
        decoder: Any,
        decoder_processor: Any,
        index: ImageIndex | None = None,
        lexicon: Lexicon | None = None,
    ):
        """
        Args:
            encoder: A `SiglipModel`, on its device; None where `write` alone is called, for one candidate.
            encoder_processor: Its processor.
            decoder: A Mllama, on its device.
            decoder_processor: Its processor.
            index: Of the same encoder; without it there is no evidence.
            lexicon: Candidates agree where they state the findings of it alike; in words where it is left out.
        """
        self.embedder = Embedder(encoder, encoder_processor) if encoder is not None else None
        self.decoder, self.decoder_processor = decoder.eval(), decoder_processor
        self.finder = EvidenceFinder(index) if index is not None else None
        self.lexicon = lexicon
        self.trained_with: EvidenceKind | None = None
        self.clock = StageClock(decoder.device)

    @classmethod
    def from_pretrained(
        cls,
        encoder: str | Path,
        decoder: str | Path,
        index: str | Path | None = None,
        device: str | torch.device | None = None,
        dtype: str = "float32",
        lexicon: str | Path | None = None,
        encoder_revision: str | None = None,
        decoder_revision: str | None = None,
    ) -> "ReportPipeline":
        """Loads both models and the index.

        Args:
            encoder: A SigLIP checkpoint: a folder or a name on the Hub.
            decoder: A Mllama checkpoint, or a folder with an adapter.
            index: The folder that `recipes/index.py` wrote, with this encoder.
            device: Where both run; the accelerator where there is one, if left out.
            dtype: Of the decoder; the encoder runs in fp32, as the index was made.
            lexicon: The name of a lexicon of the library, or a YAML file.

        Raises:
            InputError: A checkpoint, the index or the lexicon does not open, or the index is of another encoder.
        """
        device = device or torch.accelerator.current_accelerator() or "cpu"
        found = None
        if index is not None:
            found = ImageIndex.load(index, encoder_hash(str(encoder), encoder_revision))
        seeing, seeing_processor = load_encoder(str(encoder), encoder_revision)
        writing, writing_processor = load_decoder(str(decoder), decoder_revision, dtype)
        agreeing = load_lexicon(lexicon) if lexicon is not None else None
        pipeline = cls(seeing.to(device), seeing_processor, writing.to(device), writing_processor, found, agreeing)
        pipeline.trained_with = trained_evidence(decoder)
        if pipeline.finder is not None:
            pipeline.finder.num_neighbours = trained_num_neighbours(decoder) or pipeline.finder.num_neighbours
        return pipeline

    def __call__(
        self,
        images: Any,
        languages: str | Sequence[str] = "en",
        patients: Sequence[Hashable | None] | None = None,
        prompts: str | Sequence[str | None] | None = None,
        **options: Any,
    ) -> list[Report]:
        """Writes a report of each image.

        Args:
            images: A list of images, each a path or opened, or a list of them that one report is of; or one alone.
            languages: `en` or `zh`, for all or for each.
            patients: Whose each image is, as in `ReportRequest`.
            prompts: What is asked instead of the task's words, for all or for each.
            options: As in `WritingOptions`.

        Returns:
            In the order of the images.

        Raises:
            InputError: An image does not open, or an option is not as it must be.
        """
        requests = requests_of(images, languages, patients, prompts)
        written: dict[int, Report] = {}
        for place, report in self.stream(requests, WritingOptions(**options)):
            if isinstance(report, Unwritten):
                raise InputError(f"{', '.join(report.images) or f'image {place}'}: {report.reason}")
            written[place] = report
        return [written[place] for place in range(len(requests))]

    def stream(
        self, requests: Sequence[ReportRequest], options: WritingOptions
    ) -> Iterator[tuple[int, Report | Unwritten]]:
        """Writes reports batch by batch, those with prompts of like length together.

        Args:
            requests: Their images are opened when they are needed, and let go of after; the rest stays in memory.

        Yields:
            The place of a request, and its report, or why there is none. The order is not that of the requests.

        Raises:
            InputError: Evidence is asked for, and there is no index.
        """
        kind = self._kind(options)
        start = time.perf_counter()
        drafts: list[Draft] = []
        for first in range(0, len(requests), options.batch_size):
            places = range(first, min(first + options.batch_size, len(requests)))
            for place, outcome in self._look_at(requests, places):
                if isinstance(outcome, Unwritten):
                    yield place, outcome
                else:
                    drafts.append(outcome)
        drafts = yield from self._find(drafts, requests, kind, options)
        prepared = (time.perf_counter() - start) / max(1, len(drafts))
        drafts.sort(key=lambda draft: (draft.num_tokens, draft.place))
        per_batch = max(1, options.batch_size // options.num_candidates)
        for first in range(0, len(drafts), per_batch):
            start = time.perf_counter()
            rows, batch = [], []
            for draft in drafts[first : first + per_batch]:
                request = requests[draft.place]
                try:
                    images = draft.opened or request.open()[0]
                except UnreadableImage as error:
                    yield draft.place, unwritten(request, error)
                    continue
                batch.append(draft)
                rows.append({"id": request.id, "images": images, "messages": draft.messages})
            if not batch:
                continue
            asked = [(*draft.keys, kind, str(requests[draft.place].messages(options.task))) for draft in batch]
            seeds = [options.seeds("\0".join(names)) for names in asked]
            texts = self._written(rows, seeds, options)
            ranked = self._ranked(texts, torch.stack([draft.embed for draft in batch]), options)
            seconds = prepared + (time.perf_counter() - start) / len(batch)
            for draft, candidates in zip(batch, ranked, strict=True):
                yield draft.place, draft.report(requests[draft.place], candidates, kind, seconds, self.lexicon)

    def write(
        self,
        chats: Sequence[dict[str, Any]],
        evidences: Sequence[Evidence | None],
        kind: EvidenceKind,
        languages: Sequence[str] | None = None,
        image_embeds: Tensor | None = None,
        progress: str | None = None,
        **options: Any,
    ) -> list[str]:
        """Answers chats with given evidence, true or not: nothing is looked up.

        Args:
            chats: What the collator takes; an answer at the end is not shown to the model. Each is opened once.
            evidences: What is told of each; None where nothing is.
            kind: Which parts of it.
            languages: That the evidence is told in; where left out, a chat's `language`, else `zh` where it asks in
                Chinese.
            image_embeds: `(N, D)`, unit norm: what candidates are held against, where several are asked for; that of
                each chat's first image where left out.
            progress: What a bar says; none is shown where it is left out.
            options: As in `WritingOptions`.

        Returns:
            One text for each chat: of several candidates the best.
        """
        options_ = WritingOptions(evidence=kind, **options)
        prompts = ToldChats(chats, evidences, kind, languages, options_.min_probability)
        per_batch = max(1, options_.batch_size // options_.num_candidates)
        sizes = prompts.sizes()
        order = sorted(range(len(prompts)), key=lambda place: (sizes[place], place))
        texts: dict[int, str] = {}
        starts = range(0, len(order), per_batch)
        for first in tqdm(starts, desc=progress, unit="batch", leave=False, disable=progress is None):
            places = order[first : first + per_batch]
            rows = [prompts[place] for place in places]
            names = [row.get("id", place) for place, row in zip(places, rows, strict=True)]
            seeds = [options_.seeds(f"{kind}\0{name}") for name in names]
            found = self._written(rows, seeds, options_)
            if options_.num_candidates == 1:
                texts |= {place: own[0] for place, own in zip(places, found, strict=True)}
                continue
            embeds = (
                image_embeds[places] if image_embeds is not None else self._embedded([r["images"][0] for r in rows])
            )
            ranked = self._ranked(found, embeds, options_)
            texts |= {place: candidates[0].text for place, candidates in zip(places, ranked, strict=True)}
        return [texts[place] for place in range(len(chats))]

    def _kind(self, options: WritingOptions) -> EvidenceKind:
        if self.finder is None and options.evidence not in (None, "none"):
            raise InputError(f"evidence: {options.evidence} needs an index; recipes/index.py makes it")
        if options.evidence == "labels" and not self.finder.index.labels:
            raise InputError("evidence: labels needs an index with labels: name zero_shot_file to recipes/index.py")
        if options.evidence is None and self.finder is not None:
            return self.trained_with or "both"
        return options.evidence or "none"

    def _embedded(self, images: Sequence[Image.Image]) -> Tensor:
        with self.clock.stage("embedding", num_items=len(images)):
            return self.embedder.images(images)

    def _look_at(
        self, requests: Sequence[ReportRequest], places: Sequence[int]
    ) -> Iterator[tuple[int, Draft | Unwritten]]:
        opened = {}
        for place in places:
            try:
                opened[place] = requests[place].open()
            except UnreadableImage as error:
                yield place, unwritten(requests[place], error)
        if not opened:
            return
        embeds = self._embedded([images[0] for images, *_ in opened.values()])
        for (place, (images, keys, patient)), embed in zip(opened.items(), embeds, strict=True):
            # What came from files is opened again later: a shard of photographs does not fit in memory.
            yield place, Draft(place, keys, embed, patient, None if requests[place].paths else images)

    def _find(
        self, drafts: Sequence[Draft], requests: Sequence[ReportRequest], kind: EvidenceKind, options: WritingOptions
    ) -> Generator[tuple[int, Unwritten], None, list[Draft]]:
        """Fills in evidence and prompts; those whose own prompt cannot be asked are left out, and yielded."""
        if self.finder is not None and drafts:
            with self.clock.stage("lookup", num_items=len(drafts)):
                found = self.finder.find(
                    torch.stack([draft.embed for draft in drafts]),
                    [draft.keys for draft in drafts],
                    [draft.patient for draft in drafts],
                    [requests[draft.place].language for draft in drafts],
                )
            for draft, evidence in zip(drafts, found, strict=True):
                draft.unlike_training = self.finder.is_unlike_training(evidence)
                draft.evidence = told(evidence, kind, options.min_probability)
        collator = MllamaCollator(
            self.decoder_processor, options.max_length, date_string=options.date_string, for_generation=True
        )
        asked = []
        for draft in drafts:
            request = requests[draft.place]
            try:
                draft.ask(request, kind, options.task, collator)
            except InputError as error:
                if request.prompt is None:
                    raise
                yield draft.place, Unwritten(request.id, request.paths, f"its prompt cannot be asked: {error}")
                continue
            asked.append(draft)
        return asked

    def _written(
        self, rows: Sequence[dict[str, Any]], seeds: Sequence[Sequence[int | None]], options: WritingOptions
    ) -> list[list[str]]:
        def on_times(first: float, rest: float, num_rows: int, num_steps: int) -> None:
            self.clock.add("first_token", first, num_rows)
            self.clock.add("per_token", rest, num_rows * (num_steps - 1))

        return generate_candidates(
            self.decoder,
            self.decoder_processor,
            rows,
            seeds,
            max_new_tokens=options.max_new_tokens,
            max_length=options.max_length,
            date_string=options.date_string,
            temperature=options.temperature,
            top_p=options.top_p,
            on_times=on_times,
        )

    def _ranked(self, texts: Sequence[Sequence[str]], embeds: Tensor, options: WritingOptions) -> list[list[Candidate]]:
        with self.clock.stage("scoring", num_items=len(texts)):
            return [
                rank_candidates(own, embed, self.embedder, options.rerank_weight, self.lexicon)
                for own, embed in zip(texts, embeds, strict=True)
            ]
