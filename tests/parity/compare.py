"""Asks both backends the same queries over the same real messages: ``make parity``.

    python -m tests.parity.compare [--queries N] [FILE ...]

A file is JSON Lines, as ``sagastore import`` takes them, or a database that the server
can open, a legacy ``memory.db`` among them. Queries are made from its texts. All matches,
newest first, must be the same message by message. So must be the hits of all pages in each
of the three orders, with their scores and snippets: of every query, or with more than 5,000
messages of every tenth. Both must have stored the messages in the same order (sequence),
which orders equal timestamps. Exit status 1 if anything differs.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from sagastore_server.postgresql.backend import PostgreSQLStorage
from sagastore_server.postgresql.options import PostgreSQLOptions
from sagastore_server.search.analysis import tokenize
from sagastore_server.search.pager import Cursor, Order, search_page
from sagastore_server.search.parser import parse_query
from sagastore_server.sqlite.backend import SQLiteStorage
from sagastore_server.storage.base import StorageBackend
from sagastore_server.storage.errors import CannotOpenError
from sagastore_server.storage.model import Message, NewMessage, OnConflict, Position
from sagastore_server.storage.query import Criteria, Hit, Scan
from sagastore_server.storage.validation import Violations
from tests.parity.texts import HARD_TEXTS
from tests.support.backends import opened
from tests.support.nested_queries import nested_query
from tests.support.postgres import fresh_schema

SAMPLE = Path(__file__).parents[1] / "data" / "sgd-sample.jsonl"
QUERIES = 5000
FEW_MESSAGES = 5000
"""Messages up to which every query is asked in every order; above, one of `ALL_ORDERS_EVERY`."""
ALL_ORDERS_EVERY = 10
PAGE_SIZES = (3, 50, 500)
NEGATIONS = (
    "NOT the",
    "NOT (the OR to)",
    'NOT (i OR "to the") OR "the to"',
    "a OR NOT (i the)",
    "(a OR NOT t*) AND (i OR NOT the)",
)
"""Queries that match many messages."""

SYMBOLS = (
    "^",
    "`",
    "’",
    "ʼ",
    "™",
    "¹",
    "½",
    "№",
    "\ufe0f",
    "\u20e3",
    "\u200d",
    "\u00ad",
    "👍🏽",
    "_",
    "+",
)
"""Characters that are borders of words, or are dropped."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@asynccontextmanager
async def both(files: list[Path]) -> AsyncIterator[tuple[StorageBackend, StorageBackend]]:
    """Open both backends with the messages of ``files``."""
    with tempfile.TemporaryDirectory() as folder:
        database = Path(folder) / "messages.db"
        for file in files:
            if file.suffix != ".jsonl":
                shutil.copy(file, database)
        async with (
            fresh_schema() as dsn,
            opened(lambda: SQLiteStorage(database)) as sqlite,
            opened(lambda: PostgreSQLStorage(PostgreSQLOptions(dsn))) as postgresql,
        ):
            drafts = [draft for file in files if file.suffix == ".jsonl" for draft in _read(file)]
            for number, text in enumerate(HARD_TEXTS):
                drafts.append(_draft({"id": f"hard-{number:04}", "content": text}))
            for at in range(0, len(drafts), 1000):
                await sqlite.bulk_save(drafts[at : at + 1000], OnConflict.REPLACE)
            await _copy(sqlite, postgresql)
            yield sqlite, postgresql


def _read(file: Path) -> Iterator[NewMessage]:
    with file.open(encoding="utf-8") as lines:
        for line in lines:
            yield _draft(json.loads(line))


def _draft(item: dict[str, object]) -> NewMessage:
    checks = Violations()
    time = datetime.fromisoformat(str(item.get("timestamp", "2024-01-01T00:00:00+00:00")))
    tags = item.get("tags", [])
    assert isinstance(tags, list)
    draft = checks.draft(
        "",
        message_id=str(item["id"]),
        provider=str(item.get("provider", "openai")),
        role=str(item.get("role", "user")),
        content=str(item["content"]),
        tags=tags,
        timestamp=(time - _EPOCH) // timedelta(microseconds=1),
        metadata=json.dumps(item.get("metadata", {})),
        session_id=str(item.get("session_id", "none")),
    )
    checks.raise_if_any()
    return draft


async def _copy(source: StorageBackend, target: StorageBackend) -> None:
    async for messages in _pages(source):
        drafts = [NewMessage(*message[:8]) for message in messages]
        await target.bulk_save(drafts, OnConflict.REPLACE)


async def _pages(backend: StorageBackend) -> AsyncIterator[list[Message]]:
    """Yield all messages in the order in which they were first stored."""
    after, upto = 0, await backend.last_sequence()
    while after < upto:
        page = await backend.scan_sequences(after, upto, 1000)
        yield page.messages
        after = page.messages[-1].sequence


async def texts_of(backend: StorageBackend) -> list[str]:
    """Return the text of every message."""
    return [message.content async for page in _pages(backend) for message in page]


async def order_of(backend: StorageBackend) -> list[str]:
    """Return the ids in the order in which the messages were first stored."""
    return [message.id async for page in _pages(backend) for message in page]


def make_queries(texts: list[str], count: int, seed: int = 1) -> list[str]:
    """Return distinct queries of every kind, built from the words of the texts."""
    chance = random.Random(seed)
    chunks = sorted({chunk for text in texts for chunk in text.split()})
    words = sorted({token for text in texts for token in tokenize(text)[:2000]})
    rare = chance.sample(words, min(len(words), 4000))

    def run(low: int, high: int) -> str:
        parts = chance.choice(texts).split()
        at = chance.randrange(len(parts)) if parts else 0
        return " ".join(parts[at : at + chance.randint(low, high)]).replace('"', "")

    def prefix() -> str:
        word = chance.choice(words)
        return word[: chance.randint(min(4, len(word)), len(word))] + "*"

    def beside_symbols() -> str:
        symbols = chance.choices(SYMBOLS, k=3)
        return f"{chance.choice(words)}{symbols[0]}{chance.choice(words)}{''.join(symbols[1:])}"

    def operand() -> str:
        return chance.choice(makers[:7])()

    # Few of them match thousands of messages: reading those takes most of the time.
    makers = (
        lambda: chance.choice(words),
        lambda: chance.choice(chunks),
        lambda: f'"{run(2, 5)}"',
        lambda: f'"{run(2, 3)}"',
        lambda: run(3, 6),
        prefix,
        prefix,
        beside_symbols,
        lambda: f'{chance.choice(chunks)} -"{beside_symbols()}"',
        lambda: f"{chance.choice(rare)} -{chance.choice(words)}",
        lambda: f"{run(3, 5)} -{run(1, 1)}",
        lambda: f'{run(3, 4)} -"{run(2, 2)}"',
        lambda: f"{run(3, 4)} -{prefix()}",
        lambda: f"{chance.choice(rare)} OR {chance.choice(rare)}",
        lambda: f'{chance.choice(rare)} -{run(1, 1)} OR "{run(2, 3)}" OR {prefix()}',
        lambda: f"{run(2, 3)} {nested_query(chance, operand, 2)}",
        lambda: f"{chance.choice(rare)} ({nested_query(chance, operand, 3)})",
        lambda: f"{run(1, 2)} NOT ({nested_query(chance, operand, 2)})",
    )
    queries = dict.fromkeys(["", "the", "t*", '"to the"', "a -i", "to OR from", *NEGATIONS])
    for _ in range(100 * count):
        if len(queries) >= count:
            break
        queries[chance.choice(makers)()] = None
    return list(queries)


async def walk(backend: StorageBackend, criteria: Criteria) -> list[Message]:
    """Return all matches, newest first, read page by page."""
    found: list[Message] = []
    after: Position | None = None
    while True:
        page = await backend.search(criteria, Scan(True, 5000, after))
        found += [_comparable(message) for message in page.messages]
        if not page.more:
            return found
        after = page.messages[-1].position


def _comparable(message: Message) -> Message:
    """Remove values that are specific to a store; of the sequences only the order is not."""
    return message._replace(created_at=None, revision=0, sequence=0)


async def _hits(
    backend: StorageBackend, criteria: Criteria, order: Order, sizes: random.Random
) -> list[Hit]:
    """Return all hits, read in pages of random sizes."""
    found: list[Hit] = []
    cursor: Cursor | None = None
    while True:
        size = sizes.choice(PAGE_SIZES)
        hits, cursor = await search_page(backend, criteria, order, size, cursor)
        found += [hit._replace(message=_comparable(hit.message)) for hit in hits]
        if cursor is None:
            return found


async def difference(
    sqlite: StorageBackend, postgresql: StorageBackend, query: str, orders: Sequence[Order]
) -> str | None:
    """Return how the answers to a query differ, or None.

    Compares all matches newest first, message by message, and then the hits of all pages in each
    of ``orders``. The stores get pages of different sizes, which must not change the result.
    """
    criteria = Criteria(parse_query(query))
    if criteria.text is not None and criteria.text.condition is None:
        return None
    left, right = await walk(sqlite, criteria), await walk(postgresql, criteria)
    if left != right:
        ids = {message.id for message in left} ^ {message.id for message in right}
        kind = f"{len(ids)} messages on one side only: {sorted(ids)[:3]}" if ids else "order"
        return f"{len(left)} and {len(right)} found; {kind}"
    sizes = random.Random(query)
    for order in orders:
        ours, others = [
            await _hits(store, criteria, order, sizes) for store in (sqlite, postgresql)
        ]
        told = _hits_difference(ours, others, len(left))
        if told:
            return f"order {order.value}: {told}"
    return None


def _hits_difference(left: list[Hit], right: list[Hit], matches: int) -> str | None:
    if not len(left) == len(right) == matches:
        return f"{len(left)} and {len(right)} hits of {matches} messages"
    for number, (one, other) in enumerate(zip(left, right, strict=True), 1):
        if one != other:
            return (
                f"hit {number} is {one.message.id} with score {one.score!r}, "
                f"and {other.message.id} with score {other.score!r}"
            )
    return None


async def compare(files: list[Path], count: int) -> int:
    """Compare, print the result and the differences, and return the number of differences."""
    async with both(files) as (sqlite, postgresql):
        texts = await texts_of(sqlite)
        queries = make_queries(texts, count)
        every = 1 if len(texts) <= FEW_MESSAGES else ALL_ORDERS_EVERY
        differing = 0
        if await order_of(sqlite) != await order_of(postgresql):
            differing += 1
            print("DIFFERENT: the order in which the messages were first stored")
        for number, query in enumerate(queries, 1):
            orders = list(Order) if number % every == 0 else []
            told = await difference(sqlite, postgresql, query, orders)
            if told:
                differing += 1
                print(f"DIFFERENT {query!r}: {told}")
            if number % 250 == 0:
                print(f"{number:,} of {len(queries):,} queries", file=sys.stderr, flush=True)
    same = max(0, len(queries) - differing)
    print(
        f"{same:,} of {len(queries):,} distinct queries over {len(texts):,} messages "
        f"have the same answer on both: {100 * same / len(queries):.2f} %"
    )
    return differing


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description="Compare search on SQLite and PostgreSQL.")
    parser.add_argument("--queries", type=int, default=QUERIES)
    parser.add_argument("files", nargs="*", type=Path, default=[SAMPLE])
    options = parser.parse_args()
    try:
        differing = asyncio.run(compare(options.files or [SAMPLE], options.queries))
    except CannotOpenError:
        others = ", ".join(str(file) for file in options.files if file.suffix != ".jsonl")
        sys.exit(f"error: {others}: not a database that the server opens; JSON Lines end in .jsonl")
    except FileNotFoundError as exc:
        sys.exit(f"error: {exc.filename}: there is no such file")
    sys.exit(1 if differing else 0)


if __name__ == "__main__":
    main()
