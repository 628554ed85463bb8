import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'vitesse[torch]'")
transformers = pytest.importorskip(
    "transformers", reason="needs transformers: pip install 'vitesse[huggingface]'"
)

from huggingface_hub import constants  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from sources.detector_rows import DETR, DETR_FILE, LABELS, YOLOS, save, tiny_model  # noqa: E402
from vitesse.errors import MissingExtra, ModelError, SpecError, UsageError, VitesseError  # noqa: E402
from vitesse.export.torch_onnx import TorchSource  # noqa: E402
from vitesse.sources.huggingface import repository  # noqa: E402
from vitesse.sources.huggingface.loading import family_of, load, open_huggingface  # noqa: E402
from vitesse.sources.huggingface.repository import find_repository  # noqa: E402
from vitesse.sources.source import ExportOptions, Given  # noqa: E402
from vitesse.spec import Decode, ModelSpec, Preprocessing, Task  # noqa: E402

SIZE = ExportOptions(size=(64, 96))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A YOLOS, the smallest detector there is."""
    return save(tiny_model("YolosForObjectDetection", YOLOS, None), tmp_path / "yolos", DETR_FILE)


def change(folder: Path, file: str = "config.json", **values: Any) -> Path:
    path = folder / file
    content = json.loads(path.read_text()) | values
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    return folder


def refusal(folder: Path | str, kind: type[VitesseError] = ModelError) -> str:
    with pytest.raises(kind) as caught:
        open_huggingface(str(folder)).build(SIZE)
    return str(caught.value)


def logits(source: TorchSource) -> Any:
    with torch.no_grad():
        return source.build(SIZE).module(torch.ones(1, 3, 64, 96))[0]


def test_a_folder_opens_with_its_labels_in_the_title(folder: Path) -> None:
    source = open_huggingface(str(folder))
    assert source.title == f"YolosForObjectDetection, 5 classes (hf:{folder})"
    assert source.axes == {"batch"}


def test_the_identity_is_of_the_weights_and_of_what_is_said_about_them(folder: Path) -> None:
    first = open_huggingface(str(folder)).identity
    assert open_huggingface(str(folder)).identity == first
    change(folder, "preprocessor_config.json", size=640)
    second = open_huggingface(str(folder)).identity
    weights = load_file(folder / "model.safetensors")
    weights["bbox_predictor.layers.2.bias"] += 1
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert len({first, second, open_huggingface(str(folder)).identity}) == 3


def test_an_unknown_type_lists_the_known_ones_and_the_way_through_onnx(folder: Path) -> None:
    text = refusal(change(folder, model_type="bert"))
    assert "is a model of type 'bert'" in text
    assert "rt_detr_v2" in text and "vit" in text
    assert "`vitesse optimize model.onnx --preset NAME`" in text


def test_a_body_without_a_head_is_refused(folder: Path) -> None:
    text = refusal(change(folder, architectures=["YolosModel"]))
    assert "holds YolosModel: a model without a head" in text
    assert "expected: YolosForObjectDetection" in text


def test_a_head_for_another_task_is_refused(folder: Path) -> None:
    text = refusal(change(folder, model_type="detr", architectures=["DetrForSegmentation"]))
    assert "holds DetrForSegmentation\n" in text
    assert "a model for another task" in text


def test_of_two_heads_of_one_type_the_one_named_is_taken(folder: Path) -> None:
    for head in ("DeiTForImageClassification", "DeiTForImageClassificationWithTeacher"):
        found = find_repository(str(change(folder, model_type="deit", architectures=[head])))
        assert family_of(found).loader == head


def test_a_config_without_architectures_goes_by_its_type_and_its_weights(folder: Path) -> None:
    assert logits(open_huggingface(str(change(folder, architectures=None)))).shape == (1, 7, 6)


def test_tensors_that_are_missing_are_named_and_not_made_up(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["class_labels_classifier.layers.2.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    text = refusal(folder)
    assert "lacks 1 tensors of YolosForObjectDetection: class_labels_classifier.layers.2.weight" in text
    assert "random numbers" in text


def test_labels_that_do_not_fit_the_head_are_refused(folder: Path) -> None:
    assert "transformers cannot load" in refusal(change(folder, id2label={"0": "ant", "1": "bee"}))


def test_labels_with_gaps_are_refused(folder: Path) -> None:
    text = refusal(change(folder, id2label={"1": "ant", "3": "bee"}), SpecError)
    assert "lacks the classes [0, 2]" in text
    assert "category ids of a data set with gaps" in text


def test_labels_that_say_nothing_count_as_unknown(folder: Path) -> None:
    change(folder, id2label={str(index): f"LABEL_{index}" for index in range(5)})
    source = open_huggingface(str(folder))
    assert source.title == f"YolosForObjectDetection (hf:{folder})"
    assert source.build(SIZE).spec.labels == ()


def test_without_a_processor_file_the_spec_is_asked_for(folder: Path) -> None:
    (folder / "preprocessor_config.json").unlink()
    text = refusal(folder, SpecError)
    assert "it has no preprocessor_config.json" in text
    assert "--spec spec.toml" in text


def test_a_processor_among_others_in_one_file_is_found(folder: Path) -> None:
    expected = open_huggingface(str(folder)).build(SIZE).spec
    (folder / "preprocessor_config.json").unlink()
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": DETR_FILE}))
    assert open_huggingface(str(folder)).build(SIZE).spec == expected


def spec(decode: Decode) -> ModelSpec:
    names = {"logits": "scores", "boxes": "places"}
    return ModelSpec(Task.DETECTION, decode, "pixels", names, Preprocessing((64, 96)), labels=LABELS)


def test_a_spec_of_the_user_wins_and_names_the_tensors(folder: Path) -> None:
    (folder / "preprocessor_config.json").unlink()
    given = spec(Decode.DETR_SOFTMAX)
    network = open_huggingface(str(folder), Given(given)).build(ExportOptions())
    assert network.spec == given
    assert (list(network.inputs), network.outputs) == (["pixels"], ("scores", "places"))


def test_a_spec_that_decodes_otherwise_is_refused(folder: Path) -> None:
    with pytest.raises(SpecError, match=r"decodes by 'detr_sigmoid'[\s\S]*'detr_softmax'"):
        open_huggingface(str(folder), Given(spec(Decode.DETR_SIGMOID)))


def test_settings_are_refused(folder: Path) -> None:
    with pytest.raises(UsageError, match=r"heads=8: .*no such setting"):
        open_huggingface(str(folder), Given(settings={"heads": "8"}))


def test_a_truncated_download_is_refused(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])
    assert "transformers cannot load" in refusal(folder)


def test_a_config_that_is_no_json_is_refused(folder: Path) -> None:
    (folder / "config.json").write_text("{")
    assert "config.json is not JSON" in refusal(folder)


def test_a_folder_that_holds_no_model_is_refused(tmp_path: Path) -> None:
    assert f"no config.json in {tmp_path}" in refusal(tmp_path)


def test_a_folder_without_weights_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert "has no weights" in refusal(folder)


def as_pickle(folder: Path) -> Path:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder


def test_a_bin_of_tensors_is_read(folder: Path) -> None:
    expected = logits(open_huggingface(str(folder)))
    assert torch.equal(logits(open_huggingface(str(as_pickle(folder)))), expected)


class Harmful:
    """What an attacker puts into a pickle."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("beside_safetensors", [False, True])
def test_code_in_a_pickle_is_never_run(folder: Path, beside_safetensors: bool) -> None:
    trace = folder / "was-here"
    if not beside_safetensors:
        (folder / "model.safetensors").unlink()
    torch.save({"weight": Harmful(trace)}, folder / "pytorch_model.bin")
    if beside_safetensors:
        assert logits(open_huggingface(str(folder))).shape == (1, 7, 6)
    else:
        assert "a pickle that wants to run code" in refusal(folder)
    assert not trace.exists()
    with (folder / "plain.pkl").open("wb") as file:
        pickle.dump(Harmful(trace), file)
    pickle.loads((folder / "plain.pkl").read_bytes())
    assert trace.exists(), "the pickle would have been harmless anyway"


def test_code_of_the_repository_is_never_run(folder: Path) -> None:
    (folder / "mine.py").write_text(f"open({str(folder / 'was-here')!r}, 'w')")
    change(folder, auto_map={"AutoModelForObjectDetection": "mine.Model", "AutoConfig": "mine.Config"})
    assert logits(open_huggingface(str(folder))).shape == (1, 7, 6)
    assert not (folder / "was-here").exists()


@pytest.mark.parametrize("name", ["./absent", "/absent/folder", "a/b/c", "what is this"])
def test_a_path_that_is_absent_is_not_looked_for_on_the_hub(name: str) -> None:
    assert f"no folder at {name}" in refusal(name)


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub, and no connection."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_name_that_cannot_be_fetched_says_what_was_tried(offline: Path) -> None:
    text = refusal("someone/yolos")
    assert "someone/yolos cannot be fetched: it is not in the cache, and the hub cannot be reached" in text
    assert "`hf download someone/yolos --local-dir FOLDER`" in text
    assert "hf:./FOLDER" in text


def test_a_name_in_the_cache_is_opened_without_a_connection(offline: Path, folder: Path) -> None:
    cached = offline / "models--someone--yolos"
    snapshot = cached / "snapshots" / ("0" * 40)
    snapshot.parent.mkdir(parents=True)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0" * 40)
    folder.rename(snapshot)
    source = open_huggingface("someone/yolos")
    assert source.title == "YolosForObjectDetection, 5 classes (hf:someone/yolos)"
    assert logits(source).shape == (1, 7, 6)


def test_a_connection_that_fails_is_a_model_that_cannot_be_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any, **named: Any) -> str:
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr(repository, "snapshot_download", fail)
    assert "likely cause: Name or service not known" in refusal("someone/yolos")


def as_saved_with_timm(state: dict[str, Any]) -> dict[str, Any]:
    """Tensors of transformers' ResNet-18 under the names that timm gives them, as in the DETRs of the hub."""
    renamed = {}
    for name, tensor in state.items():
        parts = name.split(".")
        if "embedder" in parts:
            layer = "conv1" if "convolution" in parts else "bn1"
            renamed[f"model.backbone.conv_encoder.model.{layer}.{parts[-1]}"] = tensor
        elif "stages" in parts:
            stage, block = int(parts[parts.index("stages") + 1]), parts[parts.index("layers") + 1]
            convolution = "convolution" in parts
            if "shortcut" in parts:
                layer = f"downsample.{0 if convolution else 1}"
            else:
                number = int(parts[parts.index("layer") + 1]) + 1
                layer = f"conv{number}" if convolution else f"bn{number}"
            renamed[f"model.backbone.conv_encoder.model.layer{stage + 1}.{block}.{layer}.{parts[-1]}"] = (
                tensor
            )
        else:
            renamed[name] = tensor
    return renamed


def detr_with_timm(folder: Path, **changes: Any) -> tuple[Any, Path]:
    """A DETR with a ResNet-18, saved as if timm's; and the model itself."""
    sizes = {"embedding_size": 64, "hidden_sizes": [64, 128, 256, 512], "depths": [2, 2, 2, 2]}
    arguments = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "num_queries": 3}
    model = tiny_model(
        "DetrForObjectDetection",
        {**arguments, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32},
        ("ResNetConfig", {**sizes, "layer_type": "basic", "out_features": ["stage4"]}),
    )
    save(model, folder, DETR_FILE)
    saved = load_file(folder / "model.safetensors")
    save_file(as_saved_with_timm(saved), folder / "model.safetensors", {"format": "pt"})
    change(folder, backbone_config=None, use_timm_backbone=True, backbone="resnet18", **changes)
    return model, folder


def test_a_resnet_saved_with_timm_is_loaded_without_timm(tmp_path: Path) -> None:
    model, folder = detr_with_timm(tmp_path / "detr")
    found = find_repository(str(folder))
    loaded, expected = load(found, family_of(found)).state_dict(), model.state_dict()
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in expected.items())


def timm_is_here() -> bool:
    """Whether timm can be imported; beside a torch of another build its torchvision raises RuntimeError."""
    try:
        import timm  # noqa: F401
    except (ImportError, RuntimeError):
        return False
    return True


@pytest.mark.skipif(not timm_is_here(), reason="needs timm: pip install 'vitesse[timm]'")
@pytest.mark.parametrize(
    ("loader", "backbone"),
    [
        ("DetrForObjectDetection", "resnet50"),
        ("ConditionalDetrForObjectDetection", "resnet50"),
        ("DabDetrForObjectDetection", "resnet50"),
        ("DeformableDetrForObjectDetection", "resnet50"),
        ("TableTransformerForObjectDetection", "resnet18"),
    ],
)
def test_what_timm_itself_answers_is_answered_without_it(loader: str, backbone: str, tmp_path: Path) -> None:
    arguments = {**DETR, "use_timm_backbone": True, "backbone": backbone}
    arguments["hidden_size" if "DabDetr" in loader else "d_model"] = 32
    model = tiny_model(loader, arguments, None)
    found = find_repository(str(save(model, tmp_path, DETR_FILE)))
    loaded = load(found, family_of(found))
    assert loaded.config.backbone_config.model_type == "resnet"
    pixels = torch.randn(2, 3, 96, 128, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(loaded(pixels).logits, model(pixels).logits)


@pytest.mark.skipif(timm_is_here(), reason="timm is installed")
def test_a_dilated_resnet_asks_for_timm(tmp_path: Path) -> None:
    _, folder = detr_with_timm(tmp_path / "detr", dilation=True)
    text = refusal(folder, MissingExtra)
    assert "the backbone resnet18 with dilation (DC5) is one of timm" in text
    assert "pip install 'vitesse[timm]'" in text


@pytest.mark.skipif(not timm_is_here(), reason="needs timm: pip install 'vitesse[timm]'")
def test_a_dilated_resnet_is_taken_from_timm(tmp_path: Path) -> None:
    arguments = {**DETR, "d_model": 32, "use_timm_backbone": True, "backbone": "resnet50", "dilation": True}
    model = tiny_model("DetrForObjectDetection", arguments, None)
    source = open_huggingface(str(save(model, tmp_path, DETR_FILE)))
    pixels = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = source.build(SIZE).module(pixels)[0]
        np.testing.assert_allclose(found, model(pixels).logits, atol=1e-5)
