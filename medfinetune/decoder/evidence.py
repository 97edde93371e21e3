"""What a run does with evidence: words in each prompt, in training sometimes none or those of another image."""

import random
from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping
from typing import Any

import datasets
import torch

from medfinetune.data.evidence import Evidence, evidence_words, with_evidence
from medfinetune.data.text import language_of
from medfinetune.decoder.chat_tokens import name_of, turns_of
from medfinetune.decoder.collator import undecoded
from medfinetune.decoder.config import MllamaSFTConfig
from medfinetune.decoder.sampler import identify_images
from medfinetune.errors import InputError

_NUM_DRAWS = 16


class PromptEvidence:
    """The evidence of a run's chats.

    What a training row is told follows from the run's seed, the epoch and the row's id alone: the same in every number
    of processes and workers, and in a resumed run.
    """

    def __init__(
        self,
        evidence: Mapping[str, Evidence] | None,
        args: MllamaSFTConfig,
        train_dataset: datasets.Dataset,
        eval_dataset: datasets.Dataset | Mapping[str, datasets.Dataset] | None = None,
    ):
        """
        Args:
            evidence: By the id of a chat; None where `args.evidence` is `none`.
            args: The run's settings.
            train_dataset: Where the evidence of another image comes from.
            eval_dataset: What else is to be told evidence.

        Raises:
            InputError: There is no evidence of a chat with an image, or `args.evidence` is `none` although some is
                given.
        """
        if (evidence is not None) != (args.evidence != "none"):
            raise InputError(
                "evidence: is none, but the trainer is given some; set labels, reports or both"
                if evidence is not None
                else f"evidence: {args.evidence}, but the trainer is given none; pass evidence=, by the chats' ids"
            )
        self._evidence, self._args = evidence or {}, args
        self._images: dict[str, Hashable] = {}
        self._ids: dict[str, list[str]] = defaultdict(list)
        # Shared, so that workers that live longer than an epoch see it too.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        if evidence is None:
            return
        evaluated = eval_dataset.values() if isinstance(eval_dataset, Mapping) else [eval_dataset]
        for rows in (train_dataset, *(rows for rows in evaluated if rows is not None)):
            self._require(rows)
        for row, image in zip(_without_images(train_dataset), identify_images(train_dataset), strict=True):
            if row["id"] in self._evidence:
                self._images[row["id"]] = image
                self._ids[_language(row)].append(row["id"])

    def set_epoch(self, epoch: int) -> None:
        """Draws anew; called before each epoch."""
        self._epoch.fill_(epoch)

    def put_into(self, rows: Any, training: bool) -> Any:
        """The same rows with evidence in their prompts, made at each access.

        Args:
            rows: A dataset, or what stands around one and has it as `rows`.
            training: Some rows are told nothing, or what is true of another image; else all are told their own.
        """
        return EvidenceRows(rows, self, training) if self._args.evidence != "none" else rows

    def longest(self, rows: datasets.Dataset) -> Any:
        """The rows as they are at their longest, told all of their own evidence; no image is opened."""
        return self.put_into(undecoded(rows), training=False) if self._args.evidence != "none" else rows

    def words(self, row: dict[str, Any], training: bool) -> str:
        """What a row is told; empty for nothing."""
        found, kind, args = self._evidence.get(row.get("id"), Evidence()), self._args.evidence, self._args
        language = _language(row)
        if training:
            rng = random.Random(f"{args.seed} {int(self._epoch)} {row['id']}")
            chance = rng.random()
            if chance < args.evidence_dropout:
                return ""
            if kind == "both" and rng.random() < args.evidence_one_kind:
                kind = rng.choice(["labels", "reports"])
            if chance < args.evidence_dropout + args.evidence_wrong:
                return self._words_of_another(row["id"], self._told(found, kind, language), kind, language, rng)
        return self._told(found, kind, language)

    def _told(self, found: Evidence, kind: Any, language: str) -> str:
        near = found.neighbours[: self._args.evidence_num_neighbours]
        return evidence_words(Evidence(near, found.labels), kind, language, self._args.evidence_min_probability)

    def _words_of_another(self, name: str, own: str, kind: Any, language: str, rng: random.Random) -> str:
        """Other words than the row's own, found for another image; nothing where none is drawn."""
        for other in rng.choices(self._ids[language], k=_NUM_DRAWS) if self._ids.get(language) else []:
            if self._images[other] != self._images.get(name):
                words = self._told(self._evidence[other], kind, language)
                if words != own:
                    return words
        return ""

    def _require(self, rows: datasets.Dataset) -> None:
        if "id" not in rows.column_names:
            raise InputError("evidence: the rows have no column id, by which evidence is looked up")
        for name, image in zip(rows["id"], identify_images(rows), strict=True):
            if image is not None and name not in self._evidence:
                where = self._args.evidence_index or "what the trainer is given"
                raise InputError(f"chat {name}: there is no evidence of it in {where}; build the index of these data")


class EvidenceRows(torch.utils.data.Dataset):
    """Rows with evidence before the words of their prompts.

    Attributes:
        rows: The dataset itself.
    """

    def __init__(self, rows: Any, evidence: PromptEvidence, training: bool):
        """Arguments are those of `PromptEvidence.put_into`."""
        self.rows = getattr(rows, "rows", rows)
        self._rows, self._evidence, self._training = rows, evidence, training

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, number: int) -> dict[str, Any]:
        row = self._rows[number]  # a row that stands in for another is told what belongs to itself
        return tell(row, self._evidence.words(row, self._training))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[number] for number in range(len(self)))


def tell(row: dict[str, Any], words: str) -> dict[str, Any]:
    """A row with words before the last question of its prompt.

    Args:
        row: With `messages`, or `prompt` and `completion`, which are left as they are.
        words: From `evidence_words`; nothing is changed where it is empty.

    Raises:
        InputError: The row has neither form, or no turn of the user.
    """
    if not words:
        return row
    # Parted first: a mark in a text stands for an image, and evidence comes behind it.
    turns, num_prompt = turns_of(row)
    prompt = turns[:num_prompt] if num_prompt else turns
    if not any(turn["role"] == "user" for turn in prompt):
        raise InputError(f"chat {name_of(row)}: has no turn of the user that evidence could stand in")
    told = with_evidence(prompt, words)
    return row | ({"prompt": told, "completion": turns[num_prompt:]} if num_prompt else {"messages": told})


def _language(row: dict[str, Any]) -> str:
    """The row's own, or that of the user's words."""
    if row.get("language"):
        return row["language"]
    turns, num_prompt = turns_of(row)
    user = [turn for turn in (turns[:num_prompt] if num_prompt else turns) if turn["role"] == "user"]
    return language_of(" ".join(part["text"] for turn in user for part in turn["content"] if part["type"] == "text"))


def _without_images(rows: datasets.Dataset) -> Any:
    """Ids and what tells the language."""
    named = "language" in rows.column_names and None not in rows["language"]
    wanted = ("id", "language") if named else ("id", "language", "messages", "prompt", "completion")
    return rows.select_columns([name for name in rows.column_names if name in wanted])
