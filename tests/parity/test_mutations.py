"""The parity test is tested: every mistake that concerns a family moves its logits beyond the tolerance."""

import pytest
import torch

from tests.parity.mutations import MUTATIONS, differences
from tests.parity.test_families import TOLERANCE
from tests.tiny import CASES


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@torch.inference_mode()
def test_every_mistake_is_seen(case, tmp_path):
    found = differences(case, tmp_path)
    assert found.pop("") <= TOLERANCE
    unseen = {name: size for name, size in found.items() if not size > TOLERANCE}
    assert not unseen


@torch.inference_mode()
def test_every_mistake_concerns_a_family(tmp_path):
    from paragone.checkpoint.checkpoint import open_checkpoint
    from paragone.model.families import spec_of

    specs = []
    for case in CASES:
        case.save(tmp_path / case.name)
        specs.append(spec_of(open_checkpoint(tmp_path / case.name)))
    assert [m.name for m in MUTATIONS if not any(m.concerns(spec) for spec in specs)] == []
