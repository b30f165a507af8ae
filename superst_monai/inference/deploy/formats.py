"""The formats that a network is exported to: how each is made, and how it is run again without this package."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from monai.data.torchscript_utils import save_net_with_metadata
from torch import Tensor

from superst_monai.errors import RunError
from superst_monai.model.objective import FusionVAE

About = Mapping[str, Mapping[str, Any]]
LEAST_SIDES = 2
"""An exported network takes sides of at least so many pixels of the deepest level; one alone is a case of its own."""


@dataclass(frozen=True)
class Format:
    """A format.

    Attributes:
        make: makes the file's content of a network on the CPU, whose parameters need no gradient, and of the bundle's
            `metadata` and `inference` configuration, which go into it where the format has room for them.
        run: runs such content on an image `(B, 3, H, W)` and gives the scaled activity `(B, K, H, W)`.
        how: Python that runs the file `FILE`.
        needs: modules of the extra `onnx` without which it can be neither made nor run.
    """

    make: Callable[[FusionVAE, About], bytes]
    run: Callable[[bytes, Tensor], Tensor]
    how: str
    needs: tuple[str, ...] = ()

    def require(self) -> None:
        """Refuse a format whose libraries are not installed.

        Raises:
            RunError: at least one is missing.
        """
        missing = [name for name in self.needs if find_spec(name) is None]
        if missing:
            raise RunError(
                f"this format needs {', '.join(self.needs)}, but {', '.join(missing)} cannot be imported; install the "
                "extra: python -m pip install 'superst-monai[onnx]', or export to pt2."
            )


def multiple_of(network: FusionVAE) -> int:
    """Pixels that the sides of an image must be a multiple of, 2^(D-1)."""
    return int(2 ** (network.arch.depth - 1))


def _traced(network: FusionVAE) -> tuple[tuple[Tensor], dict[str, dict[int, Any]]]:
    """Example that a network is traced with, and what may vary: number of images, height and width."""
    multiple = multiple_of(network)
    example = torch.zeros(2, 3, 4 * multiple, 6 * multiple)
    sides = {axis: multiple * torch.export.Dim(name, min=LEAST_SIDES) for axis, name in ((2, "rows"), (3, "columns"))}
    return (example,), {"image": {0: torch.export.Dim("batch", min=1), **sides}}


def _make_pt2(network: FusionVAE, _: About) -> bytes:
    example, shapes = _traced(network)
    program = torch.export.export(network, example, dynamic_shapes=shapes)
    program.example_inputs = None  # they alone would be stored as a pickle
    content = io.BytesIO()
    torch.export.save(program, content)
    return content.getvalue()


def _run_pt2(content: bytes, image: Tensor) -> Tensor:
    found: Tensor = torch.export.load(io.BytesIO(content)).module()(image)
    return found


def _make_onnx(network: FusionVAE, _: About) -> bytes:
    example, shapes = _traced(network)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)`", FutureWarning)  # torch warns itself
        program = torch.onnx.export(
            network,
            example,
            dynamo=True,
            dynamic_shapes=shapes,
            input_names=["image"],
            output_names=["pred"],
            verbose=False,
        )
    if program is None:
        raise RunError("torch made no ONNX program of the network; export to pt2.")
    content: bytes = program.model_proto.SerializeToString()
    return content


def _run_onnx(content: bytes, image: Tensor) -> Tensor:
    from onnxruntime import InferenceSession

    session = InferenceSession(content, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(["pred"], {"image": image.numpy()})[0])


def _make_ts(network: FusionVAE, about: About) -> bytes:
    example, _ = _traced(network)
    content = io.BytesIO()
    with _no_warnings_of_jit():
        traced = torch.jit.trace(network, example, check_trace=False)  # type: ignore[no-untyped-call]
        more = {"inference.json": json.dumps(about["inference"]).encode()}
        save_net_with_metadata(traced, content, False, meta_values=about["metadata"], more_extra_files=more)
    return content.getvalue()


def _run_ts(content: bytes, image: Tensor) -> Tensor:
    with _no_warnings_of_jit():
        found: Tensor = torch.jit.load(io.BytesIO(content))(image)  # type: ignore[no-untyped-call]
    return found


@contextmanager
def _no_warnings_of_jit() -> Iterator[None]:
    """Silence what is known of TorchScript: torch deprecates it, and the check of an image's sides is traced away."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`torch\.jit\.\w+` is deprecated", DeprecationWarning)
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # type: ignore[attr-defined]
        yield


FORMATS: Mapping[str, Format] = {
    "pt2": Format(_make_pt2, _run_pt2, "torch.export.load(FILE).module()(image)"),
    "onnx": Format(
        _make_onnx,
        _run_onnx,
        "onnxruntime.InferenceSession(FILE).run(['pred'], {'image': image})[0]",
        ("onnx", "onnxscript", "onnxruntime"),
    ),
    "ts": Format(_make_ts, _run_ts, "torch.jit.load(FILE)(image)"),
}
"""Formats by their name, which is the suffix of their files too."""
