from __future__ import annotations

import pytest
import torch

from mmdet3d.ops.checks import check_shapes


def test_symbols_are_solved():
    sizes = check_shapes(a=(torch.zeros(2, 3, 5), "B C 5"), b=(torch.zeros(3, 7), "C _"))
    assert (sizes["B"], sizes["C"]) == (2, 3)


@pytest.mark.parametrize("shape", [(4, 7), (3,), (3, 7, 1)])
def test_disagreement_names_argument_and_shape(shape):
    with pytest.raises(ValueError, match=r"b must have shape \(C, _\) with C = 3, got \(") as error:
        check_shapes(a=(torch.zeros(2, 3), "B C"), b=(torch.zeros(shape), "C _"))
    assert str(shape) in str(error.value)
