"""Dense and sparse codes give the same products and gradients, and no product reads the whole matrix."""

import warnings

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fsae.autoencoders import codes as codes_module
from fsae.autoencoders import squared_gram
from fsae.autoencoders.codes import Codes
from fsae.autoencoders.encoder_product import linear_codes
from fsae.autoencoders.pattern import Pattern

BATCH, WIDTH, D_IN = 5, 7, 4


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def mask_with(case: str) -> Tensor:
    mask = draw(BATCH, WIDTH, seed=3) > 0.2
    match case:
        case "empty row":
            mask[2] = False
        case "empty ends":
            mask[0] = mask[-1] = False
        case "empty column":
            mask[:, 3] = False
        case "nothing":
            mask[:] = False
        case "everything":
            mask[:] = True
        case "one sample":
            mask = mask[:1]
    return mask


CASES = ["empty row", "empty ends", "empty column", "nothing", "everything", "one sample"]
each_case = pytest.mark.parametrize("case", CASES)


def sparse_codes(mask: Tensor, dtype: torch.dtype = torch.float64) -> Codes:
    pattern = Pattern.of_mask(mask)
    return Codes(draw(pattern.columns.shape[0], seed=5, dtype=dtype).requires_grad_(), pattern)


def unsorted_codes() -> Codes:
    """Two entries a row, columns in no order, as topk returns them."""
    indices = torch.tensor([[6, 0], [3, 5], [5, 2], [1, 0], [6, 3]])
    return Codes(draw(10, seed=6).requires_grad_(), Pattern.of_indices(indices, WIDTH))


def test_pattern_of_mask_by_hand():
    pattern = Pattern.of_mask(torch.tensor([[0, 1, 1], [0, 0, 0], [1, 0, 1]]).bool())
    # Row 0 holds columns 1 and 2, row 1 none, row 2 columns 0 and 2: rows begin at entries 0, 2, 2 and end at 4.
    assert pattern.columns.tolist() == [1, 2, 0, 2]
    assert pattern.offsets.tolist() == [0, 2, 2, 4]
    assert pattern.rows.tolist() == [0, 0, 2, 2]
    assert (pattern.batch, pattern.width) == (3, 3)
    order, transposed = pattern.transposed
    # Column 0 has entry 2 (row 2), column 1 entry 0 (row 0), column 2 entries 1 and 3 (rows 0 and 2).
    assert order.tolist() == [2, 0, 1, 3]
    assert transposed.columns.tolist() == [2, 0, 0, 2]
    assert transposed.offsets.tolist() == [0, 1, 2, 4]
    assert transposed.rows.tolist() == [0, 1, 2, 2]
    assert (transposed.batch, transposed.width) == (3, 3)


def test_rows_from_offsets_are_those_of_the_mask():
    for case in CASES:
        pattern = Pattern.of_mask(mask_with(case))
        assert Pattern(pattern.columns, pattern.offsets, pattern.width).rows.tolist() == pattern.rows.tolist()


def test_products_by_hand():
    codes = Codes(
        torch.tensor([2.0, -1.0, 3.0]), Pattern.of_mask(torch.tensor([[1, 0, 1], [0, 0, 0], [0, 1, 0]]).bool())
    )
    W = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    assert codes.dense().tolist() == [[2, 0, -1], [0, 0, 0], [0, 3, 0]]
    # 2 [1 2] - [5 6] = [-3 -2];  nothing;  3 [3 4] = [9 12]
    assert codes.decode(W).tolist() == [[-3, -2], [0, 0], [9, 12]]
    X = torch.tensor([[1.0, 0.0], [7.0, 7.0], [1.0, 1.0]])
    # (0,0): [1 0].[1 2] = 1;  (0,2): [1 0].[5 6] = 5;  (2,1): [1 1].[3 4] = 7
    assert codes.sample(X, W).values.tolist() == [1, 5, 7]
    # Rows share no column, so only the diagonal is left: 4 + 1 and 9.
    # The Gram matrix is [[5 0 0], [0 0 0], [0 0 9]]: 25 + 81.
    assert codes.squared_gram_norm() == 106
    assert codes.column_sums().tolist() == [2, 3, -1]
    assert codes.row_sums().tolist() == [1, 0, 3]
    assert codes.columns(torch.tensor([10.0, 20.0, 30.0])).tolist() == [10, 30, 20]


@each_case
@pytest.mark.parametrize(
    "product", ["decode", "sample", "squared_gram_norm", "column_sums", "row_sums", "columns", "map"]
)
def test_sparse_products_and_gradients_are_the_dense_ones(case: str, product: str):
    sparse = sparse_codes(mask_with(case))
    mask = mask_with(case)
    batch = mask.shape[0]
    leaf = sparse.dense().detach().requires_grad_()
    dense = Codes(leaf)
    W, X, v = (
        draw(WIDTH, D_IN).requires_grad_(),
        draw(batch, D_IN, seed=1).requires_grad_(),
        draw(WIDTH).requires_grad_(),
    )

    def result(codes: Codes) -> Tensor:
        match product:
            case "decode":
                return codes.decode(W)
            case "sample":
                sampled = codes.sample(X, W)
                return sampled.with_values(sampled.values * codes.values).dense()
            case "squared_gram_norm":
                return codes.squared_gram_norm()
            case "column_sums":
                return codes.column_sums()
            case "row_sums":
                return codes.row_sums()
            case "columns":
                return codes.with_values(codes.values * codes.columns(v)).dense()
            case _:
                return codes.map(torch.square).dense()

    ours, wanted = result(sparse), result(dense)
    torch.testing.assert_close(ours, wanted, rtol=1e-12, atol=1e-12)
    weights = draw(*wanted.shape, seed=9)
    others = [W, X, v]
    got = torch.autograd.grad(
        (ours * weights).sum(), [sparse.values, *others], materialize_grads=True, allow_unused=True
    )
    want = torch.autograd.grad((wanted * weights).sum(), [leaf, *others], materialize_grads=True, allow_unused=True)
    torch.testing.assert_close(got[0], want[0][mask], rtol=1e-12, atol=1e-12)
    for one, other in zip(got[1:], want[1:], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@each_case
def test_gradcheck_of_decode_sample_and_gram(case: str):
    codes = sparse_codes(mask_with(case))
    W = draw(WIDTH, D_IN).requires_grad_()
    X = draw(codes.shape[0], D_IN, seed=1).requires_grad_()
    if codes.values.numel():
        assert torch.autograd.gradcheck(lambda values, W: codes.with_values(values).decode(W), (codes.values, W))
        assert torch.autograd.gradcheck(lambda values: codes.with_values(values).squared_gram_norm(), (codes.values,))
    else:
        assert torch.autograd.gradcheck(lambda W: codes.decode(W), (W,))
        assert codes.squared_gram_norm() == 0
    assert torch.autograd.gradcheck(lambda X, W: codes.sample(X, W).dense(), (X, W))


def test_gradcheck_with_columns_in_no_order():
    codes = unsorted_codes()
    W, X = draw(WIDTH, D_IN).requires_grad_(), draw(BATCH, D_IN, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda values, W: codes.with_values(values).decode(W), (codes.values, W))
    assert torch.autograd.gradcheck(lambda values: codes.with_values(values).squared_gram_norm(), (codes.values,))
    assert torch.autograd.gradcheck(lambda X, W: codes.sample(X, W).dense(), (X, W))
    torch.testing.assert_close(codes.squared_gram_norm(), (codes.dense() @ codes.dense().T).square().sum())


@each_case
def test_gradcheck_of_linear_codes(case: str):
    mask = mask_with(case)
    x = draw(mask.shape[0], D_IN, seed=1).requires_grad_()
    centre = draw(D_IN, seed=4).requires_grad_()
    W_enc = draw(WIDTH, D_IN, seed=2).T.requires_grad_()
    pattern = Pattern.of_mask(mask)
    for select in (None, lambda _: pattern):
        assert torch.autograd.gradcheck(lambda x, c, W, s=select: linear_codes(x, c, W, s).dense(), (x, centre, W_enc))
        assert torch.autograd.gradcheck(lambda x, W, s=select: linear_codes(x, None, W, s).dense(), (x, W_enc))


@pytest.mark.parametrize("sparse", [False, True])
def test_encoder_gradient_lies_in_memory_as_the_weights_do(sparse: bool):
    W_enc = draw(WIDTH, D_IN).T.requires_grad_()
    x = draw(BATCH, D_IN, seed=1)
    codes = linear_codes(x, None, W_enc, (lambda products: Pattern.of_mask(products > 0)) if sparse else None)
    (grad,) = torch.autograd.grad(codes.values.square().sum(), W_enc)
    assert W_enc.stride() == (1, D_IN)
    assert grad.stride() == W_enc.stride()


def test_select_sees_the_product_and_no_gradient():
    x, W_enc = draw(BATCH, D_IN), draw(D_IN, WIDTH, seed=1).requires_grad_()
    seen = []

    def select(products: Tensor) -> Pattern:
        seen.append(products)
        return Pattern.of_mask(products > 1)

    codes = linear_codes(x, None, W_enc, select)
    torch.testing.assert_close(seen[0], (x @ W_enc).detach())
    assert not seen[0].requires_grad
    torch.testing.assert_close(codes.dense(), torch.where(seen[0] > 1, seen[0], 0.0))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_gram_gradient_is_the_same_in_slices(count: int, monkeypatch: pytest.MonkeyPatch):
    codes = sparse_codes(mask_with("empty row"))
    (whole,) = torch.autograd.grad(codes.squared_gram_norm(), codes.values)
    # 5 samples in slices of 1, 2 and 3: the last slice is a short one for 2 and 3.
    monkeypatch.setattr(squared_gram, "_samples_a_slice", lambda pattern: count)
    (sliced,) = torch.autograd.grad(codes.squared_gram_norm(), codes.values)
    torch.testing.assert_close(sliced, whole, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("shape", [(3, 8), (8, 3)], ids=["few samples", "few latents"])
def test_gram_of_either_shape(shape: tuple[int, int], sparse: bool):
    matrix = draw(*shape) * (draw(*shape, seed=1) > 0)
    codes = Codes(matrix) if not sparse else None
    if codes is None:
        pattern = Pattern.of_mask(matrix != 0)
        codes = Codes(matrix[pattern.rows, pattern.columns], pattern)
    codes.values.requires_grad_()
    torch.testing.assert_close(codes.squared_gram_norm(), (matrix @ matrix.T).square().sum(), rtol=1e-13, atol=0)
    assert torch.autograd.gradcheck(lambda values: codes.with_values(values).squared_gram_norm(), (codes.values,))


@pytest.mark.parametrize("sparse", [False, True])
def test_gram_takes_the_smaller_side(sparse: bool):
    # 400 samples of 6 latents: nothing as large as 400 x 400 is there, and nothing of 400 x 32, a slice's table.
    matrix = draw(400, 6) * (draw(400, 6, seed=1) > 0)
    pattern = Pattern.of_mask(matrix != 0) if sparse else None
    values = matrix if pattern is None else matrix[pattern.rows, pattern.columns]
    codes = Codes(values.clone().requires_grad_(), pattern)
    largest = 0

    class Largest(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            if isinstance(result, Tensor):
                largest = max(largest, result.numel())
            return result

    with Largest():
        codes.squared_gram_norm().backward()
    assert 0 < largest <= 400 * 6


@each_case
@pytest.mark.parametrize("slices", [1, 3, 4, 7])
@pytest.mark.parametrize("mkl", [True, False])
def test_gram_over_the_latents(case: str, slices: int, mkl: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(codes_module, "_GRAM_SLICES", slices)
    if not mkl:
        monkeypatch.setattr(codes_module, "has_sparse_product", lambda tensor: False)
    codes = sparse_codes(mask_with(case))
    dense = codes.dense().detach()
    begun = draw(WIDTH, WIDTH, seed=8)
    for each in (codes, Codes(dense)):
        total = begun.clone()
        each.add_gram(total)
        torch.testing.assert_close(total.triu(), (begun + dense.T @ dense).triu(), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_gram_over_the_latents_with_columns_in_no_order(dtype: torch.dtype):
    codes = Codes(unsorted_codes().values.to(dtype), unsorted_codes().pattern)
    dense, total = codes.dense().detach().double(), torch.zeros(WIDTH, WIDTH, dtype=torch.float64)
    codes.add_gram(total)
    torch.testing.assert_close(total.triu(), (dense.T @ dense).triu(), rtol=1e-14, atol=1e-14)


@each_case
@pytest.mark.parametrize("mkl", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("samples", [1, 2, 100])
def test_transposed_products_are_added_in_the_type_of_the_sum(
    case: str, mkl: bool, dtype: torch.dtype, samples: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(codes_module, "_VECTOR_ENTRIES", samples * D_IN)
    if not mkl:
        monkeypatch.setattr(codes_module, "has_sparse_product", lambda tensor: False)
    codes = sparse_codes(mask_with(case), dtype=dtype)
    X, begun = draw(codes.shape[0], D_IN).to(dtype), draw(WIDTH, D_IN, seed=8)
    wanted = begun + codes.dense().detach().double().T @ X.double()
    for each in (codes, Codes(codes.dense().detach())):
        total = begun.clone()
        each.add_transposed_product(total, X)
        torch.testing.assert_close(total, wanted, rtol=1e-13, atol=1e-13)


def test_patterns_one_under_the_other():
    mask = mask_with("empty row")
    pattern = Pattern.stacked([Pattern.of_mask(part) for part in mask.split(2)])
    whole = Pattern.of_mask(mask)
    for name in ("columns", "offsets", "rows"):
        assert torch.equal(getattr(pattern, name), getattr(whole, name)), name
    assert (pattern.batch, pattern.width) == (whole.batch, whole.width)


@pytest.mark.parametrize("width", [7, 8, 24])
def test_a_mask_that_is_a_part_of_another(width: int):
    mask = draw(9, width) > 0.5
    part = Pattern.of_mask(mask[1:])
    assert torch.equal(torch.stack([part.rows, part.columns], 1), mask[1:].nonzero())


def test_no_samples_have_no_gram():
    codes = Codes(torch.zeros(0), Pattern.of_mask(torch.zeros(0, 8, dtype=torch.bool)))
    assert codes.squared_gram_norm() == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gram_of_short_types_is_summed_in_float32(dtype: torch.dtype):
    codes = sparse_codes(mask_with("empty row"), dtype=dtype)
    exact = codes.dense().detach().double()
    norm = codes.squared_gram_norm()
    assert norm.dtype == torch.float32
    torch.testing.assert_close(norm.double(), (exact @ exact.T).square().sum(), rtol=1e-6, atol=1e-6)
    norm.backward()
    assert codes.values.grad is not None
    assert codes.values.grad.dtype == dtype


def test_sparse_products_say_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        codes = sparse_codes(mask_with("empty row"))
        codes.squared_gram_norm().backward()
        codes.add_gram(torch.zeros(WIDTH, WIDTH))
