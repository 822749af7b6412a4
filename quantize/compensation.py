"""Error-compensated rounding of weights (GPTQ, arXiv 2210.17323).

Rounding to the nearest level minimizes the error of each weight. What matters is the error of the product ``x @ W``,
and the channels of real activations are correlated: after a row of ``W`` is rounded, the rows that are not rounded yet
can take over a part of its error. With the Gram matrix ``H`` of the inputs, the best correction of all later rows has a
closed form in the Cholesky factor of the inverse of ``H``.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from runtime.ort.threads import usable_cores

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

# Added to the diagonal of the Gram matrix, as a share of its mean: it keeps the matrix invertible, and limits how far
# corrections follow the calibration audio. It is that of the paper, except for 4 bits with few rows: on 18 recordings
# (some 300 rows of a decoder with 512 and 2,048 channels) 0.1 to 1 left a quarter less error on other recordings.
_DAMPING, _DAMPING_FOR_FEW_ROWS = 0.01, 0.1
_MANY_ROWS_PER_CHANNEL = 2
# Rows that are corrected at once by a matrix product; the rows of the same group are corrected one by one.
_GROUP = 32
# Triangular matrices of at most this size are inverted directly.
_SMALL = 64
_COLUMNS_PER_TASK = 1024


class Compensation:
    """Rounding that is compensated for given inputs. All weights that read the same inputs share it."""

    def __init__(self, inputs: Floats, *, bits: int = 8) -> None:
        """Factor the Gram matrix of ``inputs``.

        Args:
            inputs: Rows of real inputs [n, K], float32.
            bits: 4 or 8, of the weights.
        """
        few = bits == 4 and len(inputs) < _MANY_ROWS_PER_CHANNEL * inputs.shape[1]
        self._order, self._factor = _inverse_factor(inputs, _DAMPING_FOR_FEW_ROWS if few else _DAMPING)

    def round(self, weight: Floats, scales: Floats, zeros: Floats, block: int, levels: tuple[int, int]) -> Floats:
        """Round ``weight`` to levels so that the error of ``inputs @ weight`` is small.

        Args:
            weight: Weights [K, N], float32.
            scales: Step of each block [⌈K/block⌉, N], positive.
            zeros: Level that represents zero for each block [⌈K/block⌉, N].
            block: Rows of ``weight`` that share a scale.
            levels: Smallest and largest level.

        Returns:
            Levels as float32 [K, N]: ``(levels - zeros) * scales`` represents the weights.
        """
        order, factor = self._order, self._factor
        lowest, highest = levels
        rounded = np.empty(weight.shape, np.float32)
        blocks = order // block

        def round_columns_from(start: int) -> None:
            columns = slice(start, start + _COLUMNS_PER_TASK)
            left = weight[order, columns].astype(np.float32)
            for begin in range(0, len(order), _GROUP):
                end = min(begin + _GROUP, len(order))
                errors = np.empty((end - begin, left.shape[1]), np.float32)
                for row in range(begin, end):
                    scale, zero = scales[blocks[row], columns], zeros[blocks[row], columns]
                    level = np.clip(np.rint(left[row] / scale) + zero, lowest, highest)
                    rounded[order[row], columns] = level
                    error = (left[row] - (level - zero) * scale) / factor[row, row]
                    errors[row - begin] = error
                    left[row + 1 : end] -= factor[row, row + 1 : end, None] * error
                left[end:] -= factor[begin:end, end:].T @ errors

        with ThreadPoolExecutor(usable_cores()) as pool:  # numpy releases the interpreter lock
            list(pool.map(round_columns_from, range(0, weight.shape[1], _COLUMNS_PER_TASK)))
        return rounded


def _inverse_factor(inputs: Floats, damping: float) -> tuple[npt.NDArray[np.int64], Floats]:
    """Return the order of channels and the upper Cholesky factor of the inverse Gram matrix in that order, [K, K].

    Channels with large inputs come first: their errors are corrected by all others.
    """
    gram: Doubles = (inputs.T @ inputs).astype(np.float64)
    diagonal = gram.diagonal().copy()
    order = np.argsort(-diagonal, kind="stable")
    gram = gram[np.ix_(order, order)]
    mean = float(diagonal.mean())
    gram[np.diag_indices_from(gram)] += damping * mean if mean > 0 else 1.0
    # The lower factor of the reversed matrix is, reversed, the upper factor U with gram = U U^T; the inverse of U^T is
    # lower, and the inverse of gram is U^-T U^-1, so that its upper factor is U^-1.
    reversed_factor = np.linalg.cholesky(gram[::-1, ::-1])
    upper = reversed_factor[::-1, ::-1].astype(np.float64)
    return order, np.ascontiguousarray(_inverse(upper), np.float32)


def _inverse(upper: Doubles) -> Doubles:
    """Invert an upper triangular matrix by halves, in matrix products: six times as fast as a general inverse."""
    size = len(upper)
    if size <= _SMALL:
        inverse: Doubles = np.triu(np.linalg.inv(upper))
        return inverse
    half = size // 2
    result = np.zeros_like(upper)
    first = result[:half, :half] = _inverse(upper[:half, :half])
    last = result[half:, half:] = _inverse(upper[half:, half:])
    result[:half, half:] = -(first @ upper[:half, half:]) @ last
    return result
