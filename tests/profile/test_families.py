from vitesse.profile.families import _FAMILIES, family


def test_the_same_work_has_one_name_on_every_runtime() -> None:
    assert {family(name) for name in ("Conv", "QLinearConv", "Convolution")} == {"convolution"}
    assert {family(name) for name in ("MatMul", "Gemm", "FullyConnected", "MatMulIntegerToFloat")} == {
        "linear layer"
    }


def test_an_unknown_operator_keeps_its_name() -> None:
    assert family("GridSample") == "GridSample"


def test_no_operator_belongs_to_two_families() -> None:
    names = [name for operators in _FAMILIES.values() for name in operators]
    assert len(names) == len(set(names))
