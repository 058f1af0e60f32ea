"""The products from which all sparse operations are built, by the fastest implementation on each device.

    sum_rows      weighted sums of listed rows of a table, one for each bag of ids
    sample_rows   inner products of listed rows of two tables

On a CPU they are torch's own operators for embedding bags; on a GPU they are Triton kernels, which come with
torch there. A third product, by MKL, adds a sparse matrix times another matrix to an existing sum; it needs a torch
that was built with MKL.
"""

import warnings
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

with warnings.catch_warnings():
    # Torch warns once that such matrices are in beta. Trigger it now, because filters of warnings are not thread-safe.
    warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta", UserWarning)
    torch.zeros(1, 1).to_sparse_csr()


def sum_rows(
    table: Float[Tensor, "n d"],
    ids: Int[Tensor, " entries"],
    starts: Int[Tensor, " bags_plus_1"],
    weights: Float[Tensor, " entries"],
) -> Float[Tensor, "bags d"]:
    """Return, per bag of entries starts[i] to starts[i + 1], the sum of the rows `ids` of `table` times `weights`."""
    if _has_kernels(table):
        from fsae.sparse import triton_products

        return triton_products.sum_rows(table.contiguous(), ids, starts, weights.contiguous())
    # Autograd is not needed: other products compute the gradients.
    return torch.ops.aten._embedding_bag_forward_only(
        table.contiguous(), ids, starts, False, 0, False, weights.detach(), True
    )[0]


def sample_rows(
    X: Float[Tensor, "batch d"],
    W: Float[Tensor, "n d"],
    rows: Int[Tensor, " entries"],
    columns: Int[Tensor, " entries"],
    offsets: Int[Tensor, " batch_plus_1"],
) -> Float[Tensor, " entries"]:
    """Return X[row] . W[column] of each entry; `offsets` are the entries at which the rows of X begin."""
    if _has_kernels(X):
        from fsae.sparse import triton_products

        return triton_products.sample_rows(X.contiguous(), W.contiguous(), rows, columns)
    # The gradient of a weighted bag sum in its weights is exactly this product.
    return torch.ops.aten._embedding_bag_per_sample_weights_backward(
        X.contiguous(), W.contiguous(), columns, offsets, rows, 0
    )


def has_sparse_product(tensor: Tensor) -> bool:
    """Return whether `add_sparse_product` works on this tensor's device."""
    return tensor.device.type == "cpu" and torch.backends.mkl.is_available()


def compressed(
    offsets: Int[Tensor, " rows_plus_1"],
    columns: Int[Tensor, " entries"],
    values: Float[Tensor, " entries"],
    width: int,
) -> Float[Tensor, "rows {width}"]:
    """Return a sparse matrix in torch's own form, from compressed rows."""
    shape = (offsets.shape[0] - 1, width)
    return torch.sparse_csr_tensor(offsets.int(), columns.int(), values, shape, check_invariants=False)


def add_sparse_product(
    total: Float[Tensor, "rows columns"], left: Float[Tensor, "rows inner"], right: Float[Tensor, "inner columns"]
) -> None:
    """Compute total += left @ right: `total` is dense, `left` is `compressed`, and `right` is either."""
    torch.addmm(total, left, right, out=total)


def first_order(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Return a backward pass that raises an error if it is differentiated again."""
    # This function exists only for its type: type checkers infer another signature from once_differentiable.
    return once_differentiable(backward)


def _has_kernels(tensor: Tensor) -> bool:
    return tensor.is_cuda and _triton_is_there()


@cache
def _triton_is_there() -> bool:
    return find_spec("triton") is not None
