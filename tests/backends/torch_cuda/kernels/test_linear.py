"""`triton.linear` against float64: every epilogue, every way to walk, sizes that fit no tile."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from linear_cases import E4M3, TOLERANCE, Case, case, error

pytest.importorskip("triton", reason="the kernels are in Triton")

from vitesse.backends.torch_cuda.candidates import DeviceFacts, Tactic
from vitesse.backends.torch_cuda.kernels import linear as module
from vitesse.backends.torch_cuda.kernels.linear import KERNEL, launch, prepack
from vitesse.backends.torch_cuda.kernels.linear_configs import GemmConfig

H100 = DeviceFacts((9, 0), 132, "NVIDIA H100")
SMALL = GemmConfig(16, 32, 32, 4, 2, group=2)
WALKS = {
    "tiles": SMALL,
    "pointers": dataclasses.replace(SMALL, operands="pointers"),
    "persistent": dataclasses.replace(SMALL, persistent=True),
    "shares of K": dataclasses.replace(SMALL, split_k=2),
    "uneven shares of K by pointers": dataclasses.replace(SMALL, operands="pointers", split_k=3),
}
ON_GPU = torch.cuda.is_available()


def computed(one: Case, config: GemmConfig) -> torch.Tensor:
    run = KERNEL.prepare(one.tensors, one.attributes, Tactic(KERNEL.name, config.document()))
    (made,) = run(*one.tensors)
    return made


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill what is allocated with NaN (all bits set, in every float type), so that a gap shows."""
    empty = torch.empty

    def filled(*size, **options):
        made = empty(*size, **options)
        made.view(torch.uint8).fill_(255)
        return made

    monkeypatch.setattr(module.torch, "empty", filled)


@pytest.mark.parametrize("config", WALKS.values(), ids=WALKS.keys())
@pytest.mark.parametrize("activation", ["", "relu", "gelu", "gelu_tanh", "silu", "sigmoid"])
def test_every_activation_is_right_in_every_walk(config, activation, device):
    one = case((37, 80), 48, activation=activation, device=device)
    assert error(computed(one, config), one.expected) < TOLERANCE[torch.float16]


@pytest.mark.parametrize("config", WALKS.values(), ids=WALKS.keys())
@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("rows", [(3, 11, 40), (11, 40)], ids=["full", "shared by the batch"])
def test_a_residual_is_added_before_or_after_the_activation(config, first, rows, device):
    one = case((3, 11, 64), 40, residual=rows, residual_first=first, activation="relu", device=device)
    assert error(computed(one, config), one.expected) < TOLERANCE[torch.float16]


@pytest.mark.parametrize("config", WALKS.values(), ids=WALKS.keys())
@pytest.mark.parametrize("scale", [1, 48])
@pytest.mark.parametrize("out", [{"out_dtype": "float32"}, {"out_dtype": "float16"}, {"out_scale": 0.02}])
def test_products_of_e4m3_are_scaled_and_may_end_in_e4m3(config, scale, out, device):
    one = case((19, 96), 48, dtype=E4M3, scale=scale, activation="gelu", device=device, **out)
    made = computed(one, config)
    # On a GPU the fast sum of E4M3 products keeps about 14 bits.
    fast = 2e-3 if ON_GPU else 0.0
    assert error(made, one.expected) < TOLERANCE[made.dtype] + fast


@pytest.mark.parametrize("promoted", [True, False])
def test_sums_of_e4m3_products_may_be_promoted_to_float32(promoted, device):
    one = case((17, 256), 32, dtype=E4M3, scale=1, out_dtype="float32", device=device)
    config = dataclasses.replace(SMALL, fast_sum=not promoted)
    assert error(computed(one, config), one.expected) < (1e-4 if promoted else 2e-3)


@pytest.mark.parametrize(
    "shape, n", [((1, 8), 8), ((2, 3, 5, 24), 40), ((16, 32), 32), ((33, 72), 1000), ((7, 100), 12)]
)
@pytest.mark.parametrize(
    "config", [SMALL, WALKS["pointers"], WALKS["shares of K"]], ids=["tma", "pointers", "shares"]
)
def test_any_number_of_rows_columns_and_products_is_right(shape, n, config, device):
    if shape[-1] * 2 % 16:
        config = dataclasses.replace(config, operands="pointers")
    one = case(shape, n, out_dtype="float32", device=device)
    made = computed(one, config)
    assert made.shape == (*shape[:-1], n)
    assert error(made, one.expected) < TOLERANCE[torch.float32]


@pytest.mark.parametrize("config", WALKS.values(), ids=WALKS.keys())
def test_bfloat16_is_right(config, device):
    one = case((37, 80), 48, dtype=torch.bfloat16, out_dtype="bfloat16", activation="gelu", device=device)
    assert error(computed(one, config), one.expected) < TOLERANCE[torch.bfloat16]


def test_gelu_of_small_and_huge_numbers_is_that_of_float64(device):
    x = torch.cat([torch.linspace(-9, 9, 2001), torch.tensor([-6e4, 6e4, 0.0])]).half().unsqueeze(1)
    one = Case(
        [
            torch.cat([x, x.new_zeros(len(x), 7)], 1).to(device),
            torch.eye(8).half().to(device),
            None,
            None,
            None,
        ]
    )
    one.attributes.update(activation="gelu", out_dtype="float32")
    made, expected = computed(one, SMALL).cpu().double()[:, 0], one.expected[:, 0]
    assert ((made - expected).abs() <= 3e-7 * expected.abs().clamp(min=1)).all()
    tail = (x[:, 0] > -4.5) & (x[:, 0] < -2)
    assert ((made - expected).abs()[tail] <= 2e-3 * expected.abs()[tail]).all(), (
        "GELU's tail is not cancelled away"
    )


def test_e4m3_outputs_saturate_and_nan_stays_nan(device):
    x = torch.tensor([[1e4], [-1e4], [torch.nan], [3.0]]).half().repeat(1, 8).to(device)
    one = Case(
        [x, torch.eye(8).half().to(device), None, None, None], {"out_scale": 1.0, "activation": "relu"}
    )
    one.tensors[0][2, 1:] = 0
    made = computed(one, SMALL).float()[:, 0]
    assert made[0] == 448 and made[1] == 0 and made[2].isnan() and made[3] == 3


def test_shares_of_k_leave_their_counters_ready_for_the_next_launch(device):
    one = case((37, 96), 48, device=device)
    run = KERNEL.prepare(one.tensors, one.attributes, Tactic(KERNEL.name, WALKS["shares of K"].document()))
    first, second = run(*one.tensors)[0], run(*one.tensors)[0]
    assert torch.equal(first, second)
    assert error(second, one.expected) < TOLERANCE[torch.float16]


def test_launch_takes_rows_that_lie_apart_and_writes_nothing_beside_its_output(device):
    one = case((21, 64), 24, bias=False, device=device)
    x, weight = one.tensors[:2]
    wide = torch.full((21, 128), torch.nan, dtype=torch.float16, device=device)
    wide[:, :64] = x
    frame = torch.full((23, 40), torch.nan, dtype=torch.float16, device=device)
    launch(wide[:, :64], prepack(weight), out=frame[1:22, 8:32], config=SMALL)
    assert error(frame[1:22, 8:32], one.expected) < TOLERANCE[torch.float16]
    frame[1:22, 8:32] = torch.nan
    assert frame.isnan().all()


def test_rows_that_tma_cannot_take_where_they_lie_are_copied(device):
    one = case((21, 64), 24, bias=False, device=device)
    x, weight = one.tensors[:2]
    wide = torch.full((21, 71), torch.nan, dtype=torch.float16, device=device)
    wide[:, 3:67] = x
    out = torch.empty((21, 24), dtype=torch.float16, device=device)
    launch(wide[:, 3:67], prepack(weight), out=out, config=SMALL)
    assert error(out, one.expected) < TOLERANCE[torch.float16]


def test_the_checker_catches_a_residual_with_the_wrong_number_of_rows(device):
    one = case((3, 11, 64), 40, residual=(11, 40), device=device)
    x, weight, _, bias, residual = one.tensors
    out = torch.empty((33, 40), dtype=torch.float16, device=device)
    args = {"bias": bias.float(), "residual": residual, "out": out, "config": SMALL}
    launch(x.reshape(33, 64), prepack(weight), residual_rows=11, **args)
    assert error(out.view(3, 11, 40), one.expected) < TOLERANCE[torch.float16]
    launch(x.reshape(33, 64), prepack(weight), residual_rows=10, **args)
    assert error(out.view(3, 11, 40), one.expected) > 100 * TOLERANCE[torch.float16]


def test_the_checker_catches_a_tile_that_was_not_written(device):
    one = case((37, 80), 48, device=device)
    made = computed(one, SMALL)
    made[-1, -1] = torch.nan
    assert error(made, one.expected) == float("inf")


@pytest.mark.skipif(not ON_GPU, reason="full sizes need a GPU")
@pytest.mark.parametrize("dtype", [torch.float16, E4M3])
@pytest.mark.parametrize(
    "m, n, k", [(197, 768, 768), (6304, 3072, 768), (1050, 256, 256), (100, 2048, 256), (32, 1000, 768)]
)
def test_every_tactic_is_right_at_full_size(m, n, k, dtype, device):
    one = case((m, k), n, dtype=dtype, scale=1 if dtype == E4M3 else None, activation="gelu", device=device)
    facts = DeviceFacts(torch.cuda.get_device_capability(), H100.sms, "")
    for tactic in KERNEL.tactics(one.tensors, one.attributes, facts):
        made = computed(one, GemmConfig.of(tactic.config))
        assert error(made, one.expected) < 2e-3, tactic.text()


def test_refusals_say_why():
    def reason(facts=H100, dtype=torch.float16, **attributes):
        made = case((4, 16), 16, **attributes)
        made.tensors[:2] = [one.to(dtype) for one in made.tensors[:2]]
        return KERNEL.refuses(
            [None if one is None else one.to("meta") for one in made.tensors], made.attributes, facts
        )

    assert reason() == ""
    assert reason(dtype=torch.float32) == "takes float16, bfloat16 and float8_e4m3fn, not torch.float32"
    old = DeviceFacts((8, 0), 108, "NVIDIA A100")
    assert reason(old) == ""
    assert reason(old, E4M3) == "needs compute capability 8.9, this is (8, 0)"
    assert reason(old, out_scale=0.1) == "needs compute capability 8.9, this is (8, 0)"
    huge = [torch.zeros(size, dtype=torch.float16, device="meta") for size in ((2**20, 4096), (4096, 8))]
    assert KERNEL.refuses(huge, {}, H100) == "4294967296 elements in one tensor"


def test_what_tma_cannot_read_comes_by_pointers():
    aligned, odd = case((100, 64), 64), case((100, 60), 64)
    assert {one.config["operands"] for one in KERNEL.tactics(aligned.tensors, {}, H100)} == {
        "descriptors",
        "pointers",
    }
    assert {one.config["operands"] for one in KERNEL.tactics(odd.tensors, {}, H100)} == {"pointers"}
    old = DeviceFacts((8, 0), 108, "NVIDIA A100")
    for tactic in KERNEL.tactics(aligned.tensors, {}, old):
        assert tactic.config["operands"] == "pointers"
