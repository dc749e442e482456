"""The operations of a decoder, one a file. Each has a reference that defines the answer, a fast form
where PyTorch offers one, and a chooser; `implementation("reference")` forces the former."""

from paragone.ops.choose import implementation

__all__ = ["implementation"]
