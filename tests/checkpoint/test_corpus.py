"""Every input that fuzzing has found, and the right files they grew from: read, or refused by name."""

import pytest

from tests.fuzz import CORPUS, READERS, one_input

FILES = [(reader, path) for reader in READERS for path in sorted((CORPUS / reader).glob("*"))]


@pytest.mark.parametrize(("reader", "path"), FILES, ids=lambda v: getattr(v, "name", v))
def test_corpus(reader, path, tmp_path):
    one_input(reader, path.read_bytes(), tmp_path)


def test_there_is_a_corpus():
    assert {reader for reader, _ in FILES} == set(READERS)
