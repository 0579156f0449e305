"""Conversion of weights of the paper authors' released code, an MMDetection project."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from detectron2.config import CfgNode
from torch import Tensor

from proposal_cache.torch_files import read_torch_file
from samcp.config import without_pretraining
from samcp.errors import CheckpointError
from samcp.export import ModelFile
from samcp.modeling.meta_arch import SAMCP
from samcp.vocabulary import Vocabulary

_HEADS = ("q", "k", "v")  # the order of MultiheadAttention's packed projection

# Released name -> our name. If both are modules, the names of their parameters are appended.
_RENAMES = (
    # backbone: MMDetection's ResNet -> Detectron2's
    (r"backbone\.conv1", r"backbone.bottom_up.stem.conv1"),
    (r"backbone\.bn1", r"backbone.bottom_up.stem.conv1.norm"),
    (r"backbone\.layer(\d)\.(\d+)\.conv(\d)", r"backbone.bottom_up.res{1+1}.\2.conv\3"),
    (r"backbone\.layer(\d)\.(\d+)\.bn(\d)", r"backbone.bottom_up.res{1+1}.\2.conv\3.norm"),
    (r"backbone\.layer(\d)\.(\d+)\.downsample\.0", r"backbone.bottom_up.res{1+1}.\2.shortcut"),
    (r"backbone\.layer(\d)\.(\d+)\.downsample\.1", r"backbone.bottom_up.res{1+1}.\2.shortcut.norm"),
    (r"neck\.lateral_convs\.(\d)\.conv", r"backbone.fpn_lateral{1+2}"),
    (r"neck\.lateral_convs\.(\d)\.gn", r"backbone.fpn_lateral{1+2}.norm"),
    (r"neck\.fpn_convs\.(\d)\.conv", r"backbone.fpn_output{1+2}"),
    (r"neck\.fpn_convs\.(\d)\.gn", r"backbone.fpn_output{1+2}.norm"),
    # patch encoder
    (r"shared_mlp\.layers\.(\d)", r"patch_encoder.roi_embedding.mlp.{1*2}"),
    (r"roi_norm", r"patch_encoder.roi_embedding.norm"),
    (r"ref_point_head\.layers\.(\d)", r"patch_encoder.position.mlp.{1*2}"),
    (r"encoder_patch\.layers\.(\d+)\.self_attn\.attn", r"patch_encoder.layers.\1.self_attention"),
    (r"encoder_patch\.layers\.(\d+)\.self_attn\.attn\.out_proj", r"patch_encoder.layers.\1.self_attention.out_proj"),
    (r"encoder_patch\.layers\.(\d+)\.norms\.0", r"patch_encoder.layers.\1.self_attention.norm"),
    (r"encoder_patch\.layers\.(\d+)\.ffn\.layers\.0\.0", r"patch_encoder.layers.\1.ffn.mlp.0"),
    (r"encoder_patch\.layers\.(\d+)\.ffn\.layers\.1", r"patch_encoder.layers.\1.ffn.mlp.2"),
    (r"encoder_patch\.layers\.(\d+)\.norms\.1", r"patch_encoder.layers.\1.ffn.norm"),
    # queries
    (r"semantic_fc", r"query_builder.text_content.0"),
    (r"semantic_norm", r"query_builder.text_content.1"),
    (r"semantic_reference_fc", r"query_builder.text_box"),
    # decoder
    (r"decoder\.norm", r"decoder.norm"),
    (r"decoder\.ref_point_head\.layers\.(\d)", r"decoder.position.mlp.{1*2}"),
    (r"decoder\.layers\.(\d+)\.self_attn\.attn", r"decoder.layers.\1.self_attention"),
    (r"decoder\.layers\.(\d+)\.self_attn\.attn\.out_proj", r"decoder.layers.\1.self_attention.out_proj"),
    (r"decoder\.layers\.(\d+)\.norms\.1", r"decoder.layers.\1.self_attention.norm"),
    (r"decoder\.layers\.(\d+)\.cross_attn\.attn", r"decoder.layers.\1.cross_attention"),
    (r"decoder\.layers\.(\d+)\.cross_attn\.attn\.out_proj", r"decoder.layers.\1.cross_attention.out_proj"),
    (r"decoder\.layers\.(\d+)\.norms\.0", r"decoder.layers.\1.cross_attention.norm"),
    (r"decoder\.layers\.(\d+)\.ffn\.layers\.0\.0", r"decoder.layers.\1.ffn.mlp.0"),
    (r"decoder\.layers\.(\d+)\.ffn\.layers\.1", r"decoder.layers.\1.ffn.mlp.2"),
    (r"decoder\.layers\.(\d+)\.norms\.2", r"decoder.layers.\1.ffn.norm"),
    (r"decoder\.layers\.(\d+)\.fc_affinity_proposals\.layers\.0\.0", r"decoder.layers.\1.affinity.query_ffn.0"),
    (r"decoder\.layers\.(\d+)\.fc_affinity_proposals\.layers\.1", r"decoder.layers.\1.affinity.query_ffn.2"),
    (r"decoder\.layers\.(\d+)\.fc_affinity_patches\.layers\.0\.0", r"decoder.layers.\1.affinity.patch_ffn.0"),
    (r"decoder\.layers\.(\d+)\.fc_affinity_patches\.layers\.1", r"decoder.layers.\1.affinity.patch_ffn.2"),
    (r"decoder\.layers\.(\d+)\.conv_aff\.(\d)", r"decoder.layers.\1.affinity.mix.\2"),
    (r"decoder\.layers\.(\d+)\.logit_scale", r"decoder.layers.\1.affinity.log_scale"),
    (r"decoder\.layers\.(\d+)\.bias_lang", r"decoder.layers.\1.affinity.patch_bias"),
    (r"decoder\.layers\.(\d+)\.bias0", r"decoder.layers.\1.affinity.bias"),
    # classifier; shared by all layers, with one copy per layer
    (r"bbox_head\.cls_branches\.\d+", r"classifier.query_proj"),
    (r"bbox_head\.text_porj", r"classifier.text_proj"),
    (r"bbox_head\.logit_scale", r"classifier.log_scale"),
    (r"bbox_head\.bias_lang", r"classifier.text_bias"),
    (r"bbox_head\.bias0", r"classifier.bias"),
)

# Modules that the released code does not run, or runs only in training.
_UNUSED = (
    r"encoder\.",  # an image encoder
    r"(query_embedding|query_embedding_semantic|level_embed|memory_trans_fc|memory_trans_norm|reference_points_fc)\b",
    r"(point_embeddings|pe_layer|semantic_query)\.",
    r"bbox_head\.reg_branches\.",
    r"decoder\.roi_norm\.",  # query enhancement uses that of the patch encoder
    r"decoder\.layers\.\d+\.(self_attn_patch|self_attn_aff|cross_path_attn)\.",
    r"decoder\.layers\.\d+\.norms\.[34]\.",
    r"dn_query_generator\.",  # a label table; our denoising queries are text embeddings
    r".*\.num_batches_tracked$",
)


def released_model(path: str | Path, cfg: CfgNode) -> tuple[ModelFile, list[str]]:
    """Load a checkpoint of the released code as a model of a config.

    Args:
        cfg: config of the same model; its datasets define the vocabulary.

    Returns:
        The model file, and the names of unused tensors of the checkpoint.

    Raises:
        CheckpointError: the checkpoint is missing, damaged, or of another model than the config's.
    """
    tensors, unused = convert_released(_load_state(path))
    vocabulary = Vocabulary.of_config(cfg)
    _check_complete(path, tensors, cfg, vocabulary)
    return ModelFile(tensors, cfg.dump(), vocabulary), unused


def convert_released(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Rename the parameters of a released model, or of a part of one.

    Args:
        state: state dict with the released code's names (SamCP with use_shared_mlp and use_text_cls).

    Returns:
        The state dict for :class:`samcp.SAMCP`, and the names of unused tensors of `state`.

    Raises:
        CheckpointError: a name is unknown, or copies of a shared tensor differ.
    """
    converted: dict[str, Tensor] = {}
    unused, unknown = [], []
    for name, tensor in state.items():
        if any(re.match(pattern, name) for pattern in _UNUSED):
            unused.append(name)
            continue
        renamed = _rename(name)
        if renamed is None:
            unknown.append(name)
            continue
        for ours, value in _split(renamed, tensor):
            if ours in converted and not torch.equal(converted[ours], value):
                raise CheckpointError(f"{name}: differs from another copy of {ours} in the state dict")
            converted[ours] = value
    if unknown:
        raise CheckpointError(
            f"{len(unknown)} names are not of the released SamCP model: {_abbreviate(unknown)}; "
            "use a state dict of its detector (configs2/SamCP)"
        )
    return converted, unused


def _load_state(path: str | Path) -> Mapping[str, Tensor]:
    """Return the state dict of a checkpoint, which may be stored under "state_dict"."""
    try:
        data = read_torch_file(path)
        state: Mapping[str, Tensor] = data.get("state_dict", data)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such checkpoint") from error
    except Exception as error:  # a damaged file raises many types
        raise CheckpointError(
            f"{path}: cannot be read without running code from it ({error!r:.80}). If it is a checkpoint of MMEngine, "
            "save only its weights on a machine with MMEngine: "
            "torch.save(torch.load(path, map_location='cpu', weights_only=False)['state_dict'], new_path)"
        ) from error
    return state


def _check_complete(path: str | Path, tensors: Mapping[str, Tensor], cfg: CfgNode, vocabulary: Vocabulary) -> None:
    """Raise CheckpointError unless the tensors are all parameters of the config's model."""
    built = without_pretraining(cfg)
    built.defrost()
    # A table of the right width instead of CLIP's text encoder, whose weights would be downloaded.
    built.MODEL.SAMCP.TEXT.ENCODER = "learned"
    width = tensors.get("query_builder.text_box.weight")
    built.MODEL.SAMCP.TEXT.LEARNED_DIM = 1 if width is None else width.shape[1]
    expected = {
        name: tensor.shape
        for name, tensor in SAMCP(built, vocabulary=vocabulary).state_dict().items()
        if not name.startswith("class_embedding.")
    }
    missing, unexpected = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    mismatched = [name for name in sorted(expected.keys() & tensors.keys()) if expected[name] != tensors[name].shape]
    for problem, names in (("missing", missing), ("unexpected", unexpected), ("with other shapes", mismatched)):
        if names:
            raise CheckpointError(
                f"{path}: {len(names)} tensors {problem} for the config's model: {_abbreviate(names)}; set "
                "--config-file to the config of this model"
            )


def _rename(name: str) -> str | None:
    """Return our name of a released parameter before `_split`, None if it is unknown."""
    for pattern, ours in _RENAMES:
        found = re.fullmatch(rf"{pattern}(?P<parameter>\.\w+)?", name)
        if found:
            return _fill(found, ours) + (found["parameter"] or "")
    return None


def _fill(found: re.Match[str], template: str) -> str:
    """Substitute groups in a template: ``\\1`` by the text, ``{1+2}`` and ``{1*2}`` by a number."""
    number = {"+": lambda a, b: a + b, "*": lambda a, b: a * b}
    computed = re.sub(r"\{(\d)([+*])(\d)\}", lambda m: str(number[m[2]](int(found[int(m[1])]), int(m[3]))), template)
    return found.expand(computed)


def _split(name: str, tensor: Tensor) -> Iterable[tuple[str, Tensor]]:
    """Yield names and values of our tensors for one released tensor."""
    if ".in_proj_" in name:
        module, parameter = name.split(".in_proj_")
        for head, part in zip(_HEADS, tensor.chunk(3), strict=True):
            yield f"{module}.{head}_proj.{parameter}", part
    elif re.search(r"\.mix\.\d\.weight$", name):
        yield name, tensor.flatten(1)  # a 1x1 convolution is a matrix
    elif re.search(r"\.position\.mlp\.0\.weight$", name):
        yield name, tensor[:, _position_channels(tensor.shape[1])]
    elif re.search(r"\.(log_scale|bias)$", name) and tensor.shape == (1,) and ".mix." not in name:
        yield name, tensor.squeeze(0)
    else:
        yield name, tensor


def _position_channels(count: int) -> Tensor:
    """Return the index in the released position MLP of each input channel of ours.

    The released order is (y, x, w, h) with sines and cosines interleaved; ours is (x, y, w, h), sines before cosines.
    """
    theirs = torch.arange(count).view(4, count // 8, 2)  # coordinate, frequency, sine or cosine
    return theirs[[1, 0, 2, 3]].transpose(1, 2).flatten()


def _abbreviate(names: list[str], shown: int = 5) -> str:
    return ", ".join(names[:shown]) + (f" and {len(names) - shown} more" if len(names) > shown else "")
