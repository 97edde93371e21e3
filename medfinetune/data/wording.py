"""How long the texts are for each model, and which different ones the encoder cannot tell apart."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from medfinetune.data.chat import chat
from medfinetune.data.ledger import Ledger
from medfinetune.data.text import meaning, siglip_canonical
from medfinetune.encoder.text import normalize_text
from medfinetune.errors import InputError, why_not_loaded

_NUM_EXAMPLES = 20


def load_tokenizer(name: str, key: str) -> Any:
    """A tokenizer by `AutoTokenizer`.

    Raises:
        InputError: It cannot be loaded; `key` of the config is named.
    """
    # transformers takes seconds to import: only those wait who measure lengths.
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name)
    except Exception as error:
        raise InputError(f"{key}: {why_not_loaded(name, error)}") from error


def measure_texts(ledger: Ledger, tokenizer: Any, max_length: int) -> dict[str, Any]:
    """Lengths of the distinct texts in the encoder's tokens, rewritten as its collator does; see `measure`."""
    rows = ledger.query("SELECT text, MIN(place) FROM pairs GROUP BY text")
    texts = ((normalize_text(text), where) for text, where in rows)
    return measure(
        texts, lambda text: tokenizer(text, padding=False, truncation=False).input_ids, tokenizer, max_length
    )


def measure_chats(ledger: Ledger, tokenizer: Any, max_length: int) -> dict[str, Any]:
    """Lengths of all chats in the decoder's tokens, question and answer with the turns around them; see `measure`."""
    has_template = bool(getattr(tokenizer, "chat_template", None))

    def encode(messages: str) -> list[int]:
        if not has_template:
            parts = [part for turn in json.loads(messages) for part in turn["content"]]
            return tokenizer("\n".join(part.get("text", "") for part in parts)).input_ids
        # A fixed date: the template writes today's into the prompt.
        written = tokenizer.apply_chat_template(json.loads(messages), tokenize=False, date_string="26 Jul 2024")
        return tokenizer(written, add_special_tokens=False).input_ids

    return measure(_chats(ledger), encode, tokenizer, max_length)


def _chats(ledger: Ledger) -> Iterator[tuple[str, str]]:
    for _, pair in ledger.pairs():
        record = pair.record
        values = {name: getattr(record, name) for name in ("id", "text", "language", "source", "task")}
        values |= {"question": record.question, "answer": record.answer, "split": None, "images": record.images}
        made = chat(values | {"metadata": json.dumps({"messages": record.metadata.get("messages")})})
        yield json.dumps(made["messages"], ensure_ascii=False), record.where


def measure(
    texts: Iterator[tuple[str, str]], encode: Callable[[str], list[int]], tokenizer: Any, max_length: int
) -> dict[str, Any]:
    """Counts tokens.

    Returns:
        `max_length`; `lengths`, a count for each length; `num_texts`; `num_cut`, how many are longer; and `cut`, some
        of those, the longest first: where, tokens, and the words that the model never sees.
    """
    lengths: Counter[int] = Counter()
    cut: list[dict[str, Any]] = []
    for text, where in texts:
        ids = encode(text)
        lengths[len(ids)] += 1
        if len(ids) > max_length:
            lost = tokenizer.decode(ids[max_length:], skip_special_tokens=True)
            cut.append({"where": where, "tokens": len(ids), "lost": lost[:300]})
            cut = sorted(cut, key=lambda item: -item["tokens"])[:_NUM_EXAMPLES]
    num_cut = sum(count for length, count in lengths.items() if length > max_length)
    num_texts = sum(lengths.values())
    return {
        "max_length": max_length,
        "num_texts": num_texts,
        "num_cut": num_cut,
        "lengths": {str(length): lengths[length] for length in sorted(lengths)},
        "cut": cut,
    }


def find_confused(ledger: Ledger, tokenizer: Any | None = None) -> dict[str, Any]:
    """Finds texts that differ in meaning but are the same to the encoder's tokenizer, as `<5 mm` and `>5 mm` are.

    Args:
        ledger: All pairs.
        tokenizer: The encoder's; `siglip_canonical` where left out.

    Returns:
        `num_groups`, and some `groups` of such texts; and `num_still_confused`, how many of the groups hold texts that
        are the same even when `encoder/text.py` has rewritten the signs in words.
    """
    see = siglip_canonical if tokenizer is None else lambda text: " ".join(map(str, tokenizer(text).input_ids))
    ledger.define("seen_as", see, 1)
    ledger.define("meaning", meaning, 1)
    groups = ledger.query(
        "SELECT json_group_array(text) FROM (SELECT MIN(text) AS text, seen_as(text) AS seen, meaning(text) AS sense "
        "FROM pairs GROUP BY seen, sense) GROUP BY seen HAVING COUNT(*) > 1"
    )
    found, still, examples = 0, 0, []
    for (members,) in groups:
        texts = sorted(json.loads(members))
        found += 1
        still += len({see(normalize_text(text)) for text in texts}) < len(texts)
        if len(examples) < _NUM_EXAMPLES:
            examples.append(texts)
    return {"num_groups": found, "num_still_confused": still, "groups": examples}
