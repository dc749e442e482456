"""Matrices that the kernels multiply, and what keeps them on disk, made of each other."""

from dataclasses import replace

import numpy as np
import torch

from paragone.checkpoint.packed_file import Kept, Meaning
from paragone.ops.compressed import OUTLIER, CompressedMatrix
from paragone.ops.hadamard import HadamardMatrix
from paragone.ops.linear import Matrix
from paragone.ops.packed import PackedMatrix, Packing

BITS = 12  # of a number in a compressed matrix
ROW = Meaning(0, 0, 8, has_minimum=False, fine=False, unit=1.0, whole_rows=True)  # but for its size


def as_packed(kept: Kept, rows: int, width: int) -> PackedMatrix | None:
    """A matrix where it lies in a file; none where it is not what it should be."""
    meaning = kept.meaning
    try:
        levels = None if meaning.levels is None else tuple(meaning.levels)
        packing = Packing(meaning.bits, meaning.has_minimum, meaning.fine, meaning.unit, levels)
    except (TypeError, ValueError):
        return None
    if (meaning.rows, meaning.width) != (rows, width) or kept.panels.shape != packing.shape(rows, width):
        return None
    if kept.order is not None and not np.array_equal(np.sort(kept.order), np.arange(width)):
        return None
    order = None if kept.order is None else torch.from_numpy(kept.order)
    return PackedMatrix(rows, width, packing, torch.from_numpy(kept.panels), order)


def as_hadamard(kept: Kept, rows: int, width: int) -> HadamardMatrix | None:
    """The same for one with a scale for each row."""
    if kept.meaning != replace(ROW, rows=rows, width=width):
        return None
    if kept.panels.shape != HadamardMatrix.shape(rows, width):
        return None
    return HadamardMatrix(rows, width, torch.from_numpy(kept.panels))


def as_compressed(kept: Kept, rows: int, width: int) -> CompressedMatrix | None:
    """The same for one in bfloat16."""
    meaning, shape = kept.meaning, CompressedMatrix.shape(rows, width)
    if (meaning.rows, meaning.width, meaning.bits) != (rows, width, BITS) or kept.panels.shape != shape:
        return None
    if kept.lists is None or kept.outliers is None or len(kept.lists) % 2 or len(kept.outliers) % 2:
        return None
    lists = kept.lists.view(np.int64).copy()  # in the file they begin at any word
    panels, outliers = torch.from_numpy(kept.panels), kept.outliers.view(OUTLIER)
    matrix = CompressedMatrix(rows, width, panels, lists, outliers)
    return matrix if matrix.is_whole else None


def as_kept(matrix: Matrix) -> Kept:
    """A matrix for a file."""
    if isinstance(matrix, CompressedMatrix):
        meaning = Meaning(matrix.rows, matrix.width, BITS, has_minimum=False, fine=False, unit=1.0)
        lists, outliers = (array.view(np.int32) for array in (matrix.lists, matrix.outliers))
        return Kept(meaning, matrix.panels.numpy(), lists=lists, outliers=outliers)
    if isinstance(matrix, HadamardMatrix):
        return Kept(replace(ROW, rows=matrix.rows, width=matrix.width), matrix.panels.cpu().numpy())
    p = matrix.packing
    meaning = Meaning(matrix.rows, matrix.width, p.bits, p.has_minimum, p.fine, p.unit, p.levels)
    order = None if matrix.order is None else matrix.order.cpu().numpy()
    return Kept(meaning, matrix.panels.cpu().numpy(), order)
