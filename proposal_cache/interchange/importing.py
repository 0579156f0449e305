"""Import of masks in any supported format, alone or together with the patches of an existing cache."""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from proposal_cache.errors import CacheError
from proposal_cache.interchange.coco import import_panoptic, import_results
from proposal_cache.interchange.sa1b import import_sa1b
from proposal_cache.store import PatchCache, merge


def import_masks(
    results: str,
    output: Path,
    *,
    kind: str | None = None,
    annotations: Path | None = None,
    panoptic: Path | None = None,
    add_to: Path | None = None,
    dataset: str | None = None,
    labels: bool = False,
    scores: bool = True,
) -> None:
    """Import masks as a cache, with a progress bar.

    Args:
        results: json file; for SA-1B a folder of json files or the location of tar files.
        output: directory of the new cache.
        kind: "coco", "panoptic" or "sa1b"; None for panoptic if there are PNGs, otherwise coco.
        annotations: COCO json of the images, for coco.
        panoptic: folder of the PNGs, for panoptic.
        add_to: cache whose patches are written together with the imported ones.
        dataset: name of the dataset; None for that of `add_to`, or the name of the results.
        labels: store each category as a separate source.
        scores: store scores as predicted IoU.

    Raises:
        CacheError: if a file is missing or invalid.
    """
    base = PatchCache(add_to) if add_to else None
    dataset = dataset or (base.manifest.dataset if base else Path(results).stem)
    kind = kind or ("panoptic" if panoptic else "coco")
    load: Callable[[Path, str], None]
    if kind == "sa1b":
        load = partial(import_sa1b, results, progress=True)
    elif kind == "panoptic":
        if panoptic is None:
            raise CacheError("a panoptic json needs the folder of its PNGs: give --panoptic DIR")
        load = partial(import_panoptic, results, panoptic, labels=labels, progress=True)
    else:
        if annotations is None:
            raise CacheError(
                "COCO results contain neither names nor sizes of images: give --annotations FILE, or --panoptic DIR"
            )
        load = partial(import_results, results, annotations, labels=labels, scores=scores, progress=True)
    if base is None:
        load(output, dataset)
        return
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        folder = TemporaryDirectory(prefix=".import-", dir=output.parent)  # on the same disk
    except OSError as error:
        raise CacheError(f"{output} cannot be created: {error.strerror}: {error.filename}") from error
    with folder as name:
        load(Path(name) / "cache", dataset)
        imported = PatchCache(Path(name) / "cache")
        _check_keys(base, imported, results)
        merge([base, imported], output, dataset=dataset, progress=True)


def _check_keys(base: PatchCache, imported: PatchCache, results: str) -> None:
    """Raise CacheError if none of the imported images is in the other cache, and warn if some are not."""
    other = [key for key in base.missing(imported) if key not in base.manifest.failures]
    if not other:
        return
    if len(other) == len(imported):
        examples = [repr(next(iter(cache), None)) for cache in (imported, base)]
        raise CacheError(
            f"no image of {results} is in {base.path}: a key of the results is {examples[0]}, of the cache "
            f"{examples[1]}. A key is the path under the image root, without suffix; correct each file_name in the json"
        )
    print(
        f"warning: {len(other)} of {len(imported)} images of {results} are not in {base.path} ({other[0]!r}, ...): "
        "they have the new patches only",
        file=sys.stderr,
    )
