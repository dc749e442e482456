import pytest
import torch


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(7)
    with torch.inference_mode():
        yield
