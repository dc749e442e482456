"""Which blocks of the key/value cache belong to whom. No torch here: blocks are numbers.

A block holds the keys and values of `block_size` tokens in a row. Layers that see everything keep all of a
sequence's blocks; layers of a smaller reach (a sliding window, chunks) have a pool of their own and give back
the blocks that no later token can see. Full blocks are known by a hash of all that decides their content, so
that another sequence with the same beginning finds them again, even after their sequence has ended, until the
room is needed.
"""

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

NONE = -1  # in a block table: given back, because no later token can see it


class BlockPool:
    """The blocks of one reach: free, or held by one or more sequences."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self.ref_count = [0] * num_blocks
        self.empty = list(range(num_blocks - 1, -1, -1))  # free, and nothing worth keeping in them
        self.kept: OrderedDict[int, bytes] = OrderedDict()  # free, but found by their hash; oldest first
        self.hash_of: dict[int, bytes] = {}
        self.by_hash: dict[bytes, int] = {}

    @property
    def num_free(self) -> int:
        return len(self.empty) + len(self.kept)

    def allocate(self) -> int:
        """A free block, now held once. What was kept longest is given up last of all."""
        if self.empty:
            block = self.empty.pop()
        else:
            block, _ = self.kept.popitem(last=False)
            self._forget(block)
        self.ref_count[block] = 1
        return block

    def find(self, digest: bytes) -> int | None:
        """The block with this content, if there is one."""
        return self.by_hash.get(digest)

    def hold(self, block: int) -> None:
        """One more holder of a block that was found."""
        if self.ref_count[block] == 0:
            del self.kept[block]
        self.ref_count[block] += 1

    def release(self, block: int) -> None:
        """One holder less. Without any, a block whose content is known is kept as long as room allows."""
        self.ref_count[block] -= 1
        if self.ref_count[block] == 0:
            digest = self.hash_of.get(block)
            if digest is None:
                self.empty.append(block)
            else:
                self.kept[block] = digest

    def name(self, block: int, digest: bytes) -> None:
        """Makes a full block findable; where another has the same content already, that one stays it."""
        if digest not in self.by_hash and block not in self.hash_of:
            self.by_hash[digest] = block
            self.hash_of[block] = digest

    def _forget(self, block: int) -> None:
        del self.by_hash[self.hash_of.pop(block)]


@dataclass(slots=True)
class Slots:
    """The blocks of one sequence: a table for each pool, and the hashes of its full blocks in order. Up to
    the length `reserved` it has all that it needs."""

    tables: list[list[int]]
    hashes: list[bytes] = field(default_factory=list)
    known: list[bytes] = field(default_factory=list)  # hashes of its beginning, from `root`, held or not
    root: bytes = b""
    first: list[int] = field(default_factory=list)  # for each table, entries before this are NONE
    reserved: int = 0


class BlockManager:
    """Pools for every reach that a model's layers have; None means everything."""

    def __init__(
        self,
        reaches: Sequence[int | None],
        num_blocks: Sequence[int],
        block_size: int,
        *,
        find_prefixes: bool,
    ) -> None:
        self.reaches, self.block_size, self.find_prefixes = tuple(reaches), block_size, find_prefixes
        self.pools = [BlockPool(count) for count in num_blocks]
        self.queries = self.hits = 0  # tokens whose blocks were looked for, and found

    def new_slots(self) -> Slots:
        return Slots([[] for _ in self.pools], first=[0] * len(self.pools))

    def capacity(self) -> int:
        """The most tokens that one sequence can have when it is alone."""
        most = []
        for reach, pool in zip(self.reaches, self.pools, strict=True):
            if reach is None or self._needed_by(reach) > pool.num_blocks:
                most.append(pool.num_blocks * self.block_size)
        return min(most, default=1 << 62)

    def _needed_by(self, reach: int) -> int:
        """Blocks that a long sequence holds of a pool with a reach, one token at a time."""
        return -(-reach // self.block_size) + 1

    def match(self, slots: Slots, token_ids: Sequence[int], root: bytes) -> int:
        """Gives fresh slots the longest beginning that is in the cache already; returns its tokens. At least
        one token is left to be computed, since its logits are wanted."""
        if not self.find_prefixes:
            return 0
        whole = (len(token_ids) - 1) // self.block_size
        known = slots.known if slots.root == root else []
        if len(known) < whole:  # asked in every step until there is room, but hashed once
            parent = known[-1] if known else root
            known = known + hash_blocks(parent, token_ids, len(known), whole, self.block_size)
        slots.known, slots.root, slots.reserved = known, root, 0
        hashes = known[:whole]
        count = self._longest(hashes)
        for at, (reach, pool) in enumerate(zip(self.reaches, self.pools, strict=True)):
            first = self._first_block(reach, count * self.block_size)
            slots.tables[at], slots.first[at] = [NONE] * first, first
            for digest in hashes[first:count]:
                block = pool.by_hash[digest]
                pool.hold(block)
                slots.tables[at].append(block)
        slots.hashes = hashes[:count]
        return count * self.block_size

    def count(self, tokens: int, found: int) -> None:
        """For the hit rate: a sequence of so many tokens has begun, of which so many were found."""
        if self.find_prefixes:
            self.queries += tokens
            self.hits += found

    def _longest(self, hashes: Sequence[bytes]) -> int:
        """How many blocks from the beginning on are there, in every pool as far back as its layers look."""
        runs = []  # of each pool, how many blocks in a row are there up to each
        for pool in self.pools:
            run, found = 0, []
            for digest in hashes:
                run = run + 1 if pool.find(digest) is not None else 0
                found.append(run)
            runs.append(found)
        for count in range(len(hashes), 0, -1):
            spans = (count - self._first_block(reach, count * self.block_size) for reach in self.reaches)
            if all(found[count - 1] >= span for span, found in zip(spans, runs, strict=True)):
                return count
        return 0

    def _first_block(self, reach: int | None, length: int) -> int:
        """The first block that the token at `length` can see."""
        return 0 if reach is None else max(0, length - reach + 1) // self.block_size

    def reserve(self, slots: Slots, computed: int, length: int, least: int) -> int:
        """Blocks for tokens up to `length`, of which `computed` have their keys and values; for fewer, but at
        least up to `least`, where there are not enough. What is out of reach is given back first. Returns the
        length that there is room for now, 0 where nothing was taken."""
        if computed < length <= slots.reserved:  # what is out of reach waits until a block is taken
            return length
        for at, (reach, pool) in enumerate(zip(self.reaches, self.pools, strict=True)):
            if reach is None:
                continue
            table = slots.tables[at]
            first = min(self._first_block(reach, computed), len(table))
            for i in range(slots.first[at], first):
                pool.release(table[i])
                table[i], slots.first[at] = NONE, i + 1
        if len(min(slots.tables, key=len)) * self.block_size < length:
            blocks = min(len(t) + p.num_free for t, p in zip(slots.tables, self.pools, strict=True))
            length = min(length, blocks * self.block_size)
        if length < least or length <= computed:
            return 0
        needed = -(-length // self.block_size)
        for table, pool in zip(slots.tables, self.pools, strict=True):
            while len(table) < needed:  # one by one: whatever fails, no block is lost
                table.append(pool.allocate())
        slots.reserved = needed * self.block_size
        return length

    def computed(self, slots: Slots, token_ids: Sequence[int], length: int, root: bytes) -> None:
        """Makes the blocks that are full now findable; `length` tokens have their keys and values."""
        if not self.find_prefixes:
            return
        known, full = len(slots.hashes), length // self.block_size
        if full <= known:
            return
        parent = slots.hashes[-1] if slots.hashes else root
        slots.hashes += hash_blocks(parent, token_ids, known, full, self.block_size)
        for table, pool in zip(slots.tables, self.pools, strict=True):
            for i in range(known, full):
                if table[i] != NONE:
                    pool.name(table[i], slots.hashes[i])

    def shorten(self, slots: Slots, length: int) -> None:
        """Gives back the blocks beyond `length` tokens, which were reserved for tokens that did not come."""
        needed = -(-length // self.block_size)
        slots.reserved = min(slots.reserved, needed * self.block_size)
        for table, pool in zip(slots.tables, self.pools, strict=True):
            while len(table) > needed:
                pool.release(table.pop())

    def free(self, slots: Slots) -> None:
        """Gives everything back, the end first, so that beginnings are kept longest."""
        for at, (table, pool) in enumerate(zip(slots.tables, self.pools, strict=True)):
            while table:
                block = table.pop()
                if block != NONE:
                    pool.release(block)
            slots.first[at] = 0
        slots.hashes, slots.reserved = [], 0

    def check(self, live: Iterable[Slots]) -> None:
        """Raises AssertionError where a block is lost, held while free, or counted wrongly."""
        held = [[0] * pool.num_blocks for pool in self.pools]
        for slots in live:
            for counts, table, first in zip(held, slots.tables, slots.first, strict=True):
                for i, block in enumerate(table):
                    require((block == NONE) == (i < first), f"entry {i} of {table} with first {first}")
                    if block != NONE:
                        counts[block] += 1
        for counts, pool in zip(held, self.pools, strict=True):
            require(counts == pool.ref_count, "holders and counts differ")
            free = {*pool.empty, *pool.kept}
            require(len(free) == pool.num_free, "a block is free twice")
            require(free == {b for b in range(pool.num_blocks) if not counts[b]}, "lost, or free while held")
            require({v: k for k, v in pool.by_hash.items()} == pool.hash_of, "hashes and blocks differ")
            require(all(pool.hash_of.get(b) == d for b, d in pool.kept.items()), "kept without its hash")
            require(not any(b in pool.hash_of for b in pool.empty), "empty, but found by a hash")


def require(condition: bool, what: str) -> None:
    """An assertion that also holds under `python -O`."""
    if not condition:
        raise AssertionError(what)


def hash_blocks(
    parent: bytes, token_ids: Sequence[int], first: int, last: int, block_size: int
) -> list[bytes]:
    """SHA-256 of blocks [first, last): each of its tokens and of the block before it."""
    hashes = []
    for block in range(first, last):
        ids = array("q", token_ids[block * block_size : (block + 1) * block_size])
        parent = hashlib.sha256(parent + ids.tobytes()).digest()
        hashes.append(parent)
    return hashes


def root_hash(*parts: object) -> bytes:
    """Where a chain begins: everything beside the tokens that decides keys and values, and the tenant."""
    return hashlib.sha256(repr(parts).encode()).digest()
