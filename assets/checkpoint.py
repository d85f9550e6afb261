"""A TCN-VAE checkpoint: its encoder, its motif head, and its own answer in PyTorch."""

from __future__ import annotations

import io
import pickle
import re
import zipfile
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from assets.encoder import Block, Convolution, EncoderWeights
from assets.motif_head import make_head
from runtime.contract.errors import WeightsError
from runtime.contract.motifs import MotifHead
from runtime.contract.window import LATENT_SIZE, FloatArray

if TYPE_CHECKING:
    import torch

    State = dict[str, torch.Tensor]

_PREFIX: Final = "tcn_encoder.network."
_BARE_PREFIX: Final = "network."
_MOST_BLOCKS: Final = 14
"""The last dilation, 2**13, is far beyond a window, and small enough for any library to compute with."""
_MISFIT: Final = "expected the state dict of one TCN-VAE: save model.state_dict() again"
_REQUIRED: Final = (
    "conv1.weight_g",
    "conv1.weight_v",
    "conv1.bias",
    "conv2.weight_g",
    "conv2.weight_v",
    "conv2.bias",
)


def load_checkpoint(data: bytes, where: str) -> State:
    """Load a state dict of tensors; code in the file is never run.

    Returns:
        The tensors, those of the encoder named ``tcn_encoder.network.<block>.*`` however the file names
        them (``network.*``, either spelling of weight norm). That they are complete, finite and of the
        right shapes is for ``check_tensors`` to say.

    Raises:
        WeightsError: Not a checkpoint, damaged, holds more than tensors, or of an unknown layout.
    """
    import torch

    _check_is_whole(data, where)
    try:
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            "holds more than tensors, or is no checkpoint; nothing in it was run",
            where=where,
            hint="save model.state_dict() with torch.save",
        ) from error
    except Exception as error:  # a damaged file makes torch raise almost anything
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise WeightsError(
            f"is damaged or no checkpoint: {first}", where=where, hint="copy it again"
        ) from error
    if isinstance(state, dict) and isinstance(state.get("model_state_dict"), dict):
        raise WeightsError(
            "is a training checkpoint, expected a dict of names to float tensors",
            where=where,
            hint="save its model_state_dict alone",
        )
    stranger = _stranger(state)
    if stranger:
        raise WeightsError(
            f"{stranger}, expected a dict of names to float tensors",
            where=where,
            hint="save model.state_dict() with torch.save",
        )
    result: State = _with_plain_names(state, where)
    _check_layout(result, where)
    return result


def _check_is_whole(data: bytes, where: str) -> None:
    """A checkpoint is a zip file, whose directory comes last: what is cut short has none."""
    if data.startswith(b"PK\x03\x04") and not zipfile.is_zipfile(io.BytesIO(data)):
        raise WeightsError(
            f"is truncated or damaged: {len(data)} bytes, and the directory at its end is missing",
            where=where,
            hint="copy it again",
        )
    if zipfile.is_zipfile(io.BytesIO(data)):
        _check_members(data, where)


def _check_members(data: bytes, where: str) -> None:
    """torch.save stores its members as they are: what would be inflated is no checkpoint, and a danger."""
    try:
        members = zipfile.ZipFile(io.BytesIO(data)).infolist()
    except Exception as error:  # a damaged directory makes zipfile raise almost anything
        raise WeightsError(
            f"is damaged or no checkpoint: {error}", where=where, hint="copy it again"
        ) from error
    if any(member.filename.endswith("/constants.pkl") for member in members):
        raise WeightsError(
            "is a TorchScript archive, expected a dict of names to float tensors",
            where=where,
            hint="save model.state_dict() with torch.save, of the model before torch.jit",
        )
    compressed = any(member.compress_type != zipfile.ZIP_STORED for member in members)
    if compressed or sum(member.file_size for member in members) > len(data):
        raise WeightsError(
            "is compressed, or claims to hold more than its bytes",
            where=where,
            hint="save model.state_dict() with torch.save",
        )


def _with_plain_names(state: State, where: str) -> State:
    """One name for each tensor, whatever layout it was saved in.

    ``network.*`` is the encoder saved by itself; ``parametrizations.weight`` is the successor of
    ``torch.nn.utils.weight_norm``.
    """
    result: State = {}
    for key, value in state.items():
        name = re.sub(r"\.parametrizations\.weight\.original([01])$", _weight_norm_name, key)
        name = f"tcn_encoder.{name}" if name.startswith(_BARE_PREFIX) else name
        if name in result:
            raise WeightsError(
                f"holds {name} under two names",
                where=where,
                hint="keep one encoder: nothing here says which is right",
            )
        result[name] = value
    return result


def _weight_norm_name(match: re.Match[str]) -> str:
    return ".weight_g" if match[1] == "0" else ".weight_v"


def _stranger(state: object) -> str:
    """What is not as in a state dict; empty where all is."""
    import torch

    if not isinstance(state, dict):
        return f"holds a {type(state).__name__}"
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, torch.Tensor):
            return f"holds a {type(value).__name__} named {key!r}"
        if not key.isprintable():
            return f"holds a tensor named {key!r}"
        if value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized:
            return f"holds {key!r} without plain values ({value.layout}, {value.device})"
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            return f"holds {key!r} with more values ({value.numel()}) than are stored"
        used = key.startswith((_BARE_PREFIX, "tcn_encoder.", "fc_mu.", "activity_classifier."))
        if used and not value.is_floating_point():
            return f"holds {key!r} as {value.dtype}"
    return ""


def _blocks(state: State) -> list[int]:
    return sorted({int(m[1]) for key in state if (m := re.match(rf"{re.escape(_PREFIX)}(\d{{1,9}})\.", key))})


def _check_layout(state: State, where: str) -> None:
    blocks = _blocks(state)
    if blocks != list(range(len(blocks))) or not 0 < len(blocks) <= _MOST_BLOCKS:
        known = ", ".join(sorted({key.split(".")[0] for key in state})) or "nothing"
        raise WeightsError(
            f"unknown layout: no {_PREFIX}<block>.* or {_BARE_PREFIX}<block>.* tensors for blocks 0, 1, ... "
            f"({_MOST_BLOCKS} at most; found: {known})",
            where=where,
            hint="expected a TCN-VAE checkpoint: save model.state_dict() with torch.save",
        )


def check_tensors(state: State, where: str) -> None:
    """Hold a state dict against what an encoder needs.

    Raises:
        WeightsError: A tensor is missing, of another latent size, or not finite; names it.
    """
    needed = [f"{_PREFIX}{block}.{name}" for block in _blocks(state) for name in _REQUIRED]
    missing = [key for key in (*needed, "fc_mu.weight", "fc_mu.bias") if key not in state]
    if missing:
        raise WeightsError(
            f"has no {missing[0]}" + (f" and {len(missing) - 1} more" if len(missing) > 1 else ""),
            where=where,
            hint="save the whole TCN-VAE: an encoder without fc_mu has no latent",
        )
    shape = tuple(state["fc_mu.weight"].shape)
    if len(shape) != 2 or shape[0] != LATENT_SIZE:
        raise WeightsError(
            f"shape is {shape}, expected ({LATENT_SIZE}, channels of the last block)",
            where=f"{where}: fc_mu.weight",
            hint=f"a latent here has {LATENT_SIZE} numbers: train an encoder with that many",
        )
    for key, tensor in state.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise WeightsError(
                f"{int((~tensor.isfinite()).sum())} of {tensor.numel()} values are not finite",
                where=f"{where}: {key}",
                hint="the training diverged or the file is damaged",
            )


def parameter_count(state: State) -> int:
    """Numbers in the whole file, those of training included; a tensor with two names counts once."""
    aliases = (".net.0.", ".net.4.")
    return sum(int(value.numel()) for key, value in state.items() if not any(a in key for a in aliases))


def folded_tensors(state: State) -> dict[str, FloatArray]:
    """Those of the encoder's tensors that a state dict holds, folded, by canonical name, in graph order.

    For comparing: nothing is missing here that is not missing there, and nothing is judged.

    Returns:
        Name as in ``EncoderWeights.tensors`` to float32 array.
    """
    found: dict[str, FloatArray] = {}
    for block in _blocks(state):
        for source, name in (("conv1", "conv1"), ("conv2", "conv2"), ("downsample", "residual")):
            prefix, canonical = f"{_PREFIX}{block}.{source}", f"blocks.{block}.{name}"
            weight = _folded_weight(state, prefix)
            for part, tensor in (("weight", weight), ("bias", state.get(f"{prefix}.bias"))):
                if tensor is not None:
                    found[f"{canonical}.{part}"] = _array(tensor)
    for part in ("weight", "bias"):
        if f"fc_mu.{part}" in state:
            found[f"latent.{part}"] = _array(state[f"fc_mu.{part}"])
    return found


def _folded_weight(state: State, prefix: str) -> torch.Tensor | None:
    """A convolution's kernel with the arithmetic of ``WeightNormConv1d``; None where it is not whole."""
    import torch

    length, direction = (state.get(f"{prefix}.weight_{part}") for part in ("g", "v"))
    if length is None or direction is None:
        return state.get(f"{prefix}.weight")
    if direction.ndim != 3 or length.shape != (len(direction), 1, 1):
        return None
    direction, length = direction.float(), length.float()
    folded: torch.Tensor = direction * (
        length / torch.linalg.vector_norm(direction, dim=(1, 2), keepdim=True)
    )
    return folded


def _module(state: State, where: str) -> Any:
    """The checkpoint's own encoder in PyTorch, strictly loaded."""
    from assets.tcn_vae import encoder_from_state_dict

    encoder = {key: value for key, value in state.items() if key.startswith(("tcn_encoder.", "fc_mu."))}
    try:
        return encoder_from_state_dict(encoder).eval()
    except (RuntimeError, ValueError, KeyError, IndexError, TypeError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        detail = lines[1] if len(lines) > 1 else "".join(lines) or type(error).__name__
        raise WeightsError(
            f"does not load into a TCN encoder: {detail}", where=where, hint=_MISFIT
        ) from error


def encoder_of(state: State, where: str) -> EncoderWeights:
    """Fold weight norm with PyTorch's own arithmetic; block i has dilation 2**i.

    Raises:
        WeightsError: A shape does not fit, or an alias (``net.0`` of ``conv1``, ``net.4`` of
            ``conv2``) holds other values.
    """
    module = _module(state, where)
    blocks = []
    for index, block in enumerate(module.tcn_encoder.network):
        dilation = 2**index
        shortcut = block.downsample
        blocks.append(
            Block(
                conv1=_folded(block.conv1, dilation),
                conv2=_folded(block.conv2, dilation),
                residual=shortcut
                and Convolution(weight=_array(shortcut.weight), bias=_array(shortcut.bias), dilation=1),
            )
        )
    try:
        return EncoderWeights(
            blocks=tuple(blocks),
            latent_weight=_array(module.fc_mu.weight),
            latent_bias=_array(module.fc_mu.bias),
        )
    except WeightsError as error:
        raise WeightsError(error.what, where=f"{where}: {error.where}", hint=error.hint or _MISFIT) from error


def _folded(convolution: Any, dilation: int) -> Convolution:
    return Convolution(
        weight=_array(convolution.folded_weight()), bias=_array(convolution.bias), dilation=dilation
    )


def _array(tensor: torch.Tensor) -> FloatArray:
    return np.ascontiguousarray(tensor.detach().float().numpy())


def motif_head_of(state: State, names: tuple[str, ...] | None, where: str) -> MotifHead | None:
    """The checkpoint's motif head: its one linear ``activity_classifier``; None where it has none.

    Raises:
        WeightsError: The classifier is not one linear layer on the latent (with the shapes found),
            or the names do not fit it.
    """
    tensors = {
        key: tuple(value.shape) for key, value in state.items() if key.startswith("activity_classifier.")
    }
    if not tensors:
        return None
    weight, bias = (state.get(f"activity_classifier.{part}") for part in ("weight", "bias"))
    linear = weight is not None and bias is not None and len(tensors) == 2 and bias.ndim == 1
    if weight is None or bias is None or not linear or weight.shape != (len(bias), LATENT_SIZE):
        raise WeightsError(
            f"activity_classifier is not one linear layer on the latent: {tensors}",
            where=where,
            hint=f"expected weight (M, {LATENT_SIZE}) and bias (M,); or save the state dict without it, and "
            "give motif_head.json or let k-means make one",
        )
    names = names or tuple(f"motif_{index}" for index in range(len(bias)))
    return make_head("checkpoint", names, _array(weight), _array(bias), f"{where}: activity_classifier")


def torch_latents(data: bytes, windows: FloatArray, where: str) -> FloatArray:
    """The checkpoint's own answer, in PyTorch.

    Args:
        data: The checkpoint file's bytes.
        windows: float32 (N, 100, 9), normalized.

    Returns:
        float32 (N, 64).

    Raises:
        WeightsError: Not a checkpoint, or PyTorch cannot compute with it.
    """
    import torch

    module = _module(load_checkpoint(data, where), where)
    # On one thread, so that the last bits, which parity records, do not depend on cores.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            latents: FloatArray = module(torch.from_numpy(np.ascontiguousarray(windows))).numpy()
    except Exception as error:  # RuntimeError for the most part, but torch promises nothing
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise WeightsError(f"PyTorch cannot compute with it: {first}", where=where, hint=_MISFIT) from error
    finally:
        torch.set_num_threads(threads)
    return latents
