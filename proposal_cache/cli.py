"""The command line of patch caches: python -m proposal_cache COMMAND."""

import argparse
import json
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from proposal_cache.errors import CacheError
from proposal_cache.generation.pipeline import Summary, coverage
from proposal_cache.generation.sources import read_image
from proposal_cache.interchange.coco import export_results, import_panoptic, import_results
from proposal_cache.store import Manifest, PatchCache, merge, verify
from proposal_cache.visualize import draw_patches

_KEYS_SHOWN = 5
_CONTINUES = "what is complete is kept; repeat the same command, and it continues where it was"
_STARTS_AGAIN = "nothing was changed; repeat the same command, and it starts from the beginning"


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command.

    Exit status: 0; 1 where something is wrong with a cache or a file; 2 for a wrong command line; 130 after Ctrl-C.
    """
    parsed = _parser().parse_args(arguments)
    try:
        sys.exit(parsed.run(parsed))
    except CacheError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print(f"interrupted: {parsed.interrupted}", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # the reader, such as head, has seen enough
        sys.stderr.close()
        sys.exit(0)


def _info(arguments: argparse.Namespace) -> None:
    cache = PatchCache(arguments.cache)
    manifest, summary = cache.manifest, Summary.of(cache)
    print(f"dataset     {manifest.dataset}")
    for number, generator in enumerate(manifest.generators):
        print(f"source {number:<4} {json.dumps(generator)}")
    print(f"images      {summary.images}, first: {', '.join(_first_keys(cache)) or 'none'}")
    print(f"patches     {manifest.patches}, {summary.patches:.1f} per image")
    print(f"size        {manifest.bytes} bytes in {len(manifest.shards)} shards, {summary.bytes:.0f} per image")
    print(f"coverage    {100 * summary.coverage:.1f} % of pixels")
    print(f"failures    {summary.failed}")
    for key, reason in manifest.failures.items():
        print(f"  {key}: {reason}")


def _verify(arguments: argparse.Namespace) -> int:
    bad = files = 0
    expected = len(Manifest.load(arguments.cache).shards) + 2  # manifest and index
    for verdict in tqdm(verify(arguments.cache), "verifying", expected, unit="file"):
        files += 1
        if verdict.problem:
            bad += 1
            tqdm.write(f"BAD {verdict.file}: {verdict.problem}")
    print(f"{arguments.cache}: {files} files read, {bad} bad")
    return int(bad > 0)


def _show(arguments: argparse.Namespace) -> None:
    cache = PatchCache(arguments.cache)
    patches = cache[arguments.key]
    image = read_image(arguments.image) if arguments.image else None
    _save(draw_patches(patches, image), arguments.output)
    print(
        f"{arguments.output}: {len(patches)} patches of {arguments.key}, {patches.width} x {patches.height} pixels, "
        f"{100 * coverage(patches):.1f} % covered"
    )


def _merge(arguments: argparse.Namespace) -> None:
    merge([PatchCache(path) for path in arguments.caches], arguments.output, dataset=arguments.dataset, progress=True)
    print(Summary.of(PatchCache(arguments.output)))


def _import(arguments: argparse.Namespace) -> None:
    base = PatchCache(arguments.add_to) if arguments.add_to else None
    dataset = arguments.dataset or (base.manifest.dataset if base else arguments.results.stem)
    if base is None:
        _import_to(arguments, arguments.output, dataset)
    else:
        with _folder_beside(arguments.output) as folder:
            _import_to(arguments, folder / "cache", dataset)
            theirs = PatchCache(folder / "cache")
            _check_keys(base, theirs, arguments.results)
            merge([base, theirs], arguments.output, dataset=dataset, progress=True)
    print(Summary.of(PatchCache(arguments.output)))


def _import_to(arguments: argparse.Namespace, output: Path, dataset: str) -> None:
    if arguments.panoptic:
        import_panoptic(
            arguments.results, arguments.panoptic, output, dataset, labels=arguments.keep_labels, progress=True
        )
        return
    if arguments.annotations is None:
        raise CacheError(
            "COCO results tell neither names nor sizes of images: give --annotations FILE, or --panoptic DIR"
        )
    import_results(
        arguments.results,
        arguments.annotations,
        output,
        dataset,
        labels=arguments.keep_labels,
        scores=not arguments.drop_scores,
        progress=True,
    )


def _check_keys(base: PatchCache, theirs: PatchCache, results: Path) -> None:
    """That results are of images of the cache that they are added to: another spelling of a name is another image."""
    other = [key for key in base.missing(theirs) if key not in base.manifest.failures]
    if not other:
        return
    if len(other) == len(theirs):
        found = ", the cache's such as ".join(map(repr, [*_first_keys(theirs)[:1], *_first_keys(base)[:1]]))
        raise CacheError(
            f"no image of {results} is in {base.path}: its keys are such as {found}. A key is the path under the image "
            "root, without suffix; give each file_name in the json that path"
        )
    print(
        f"warning: {len(other)} of {len(theirs)} images of {results} are not in {base.path} ({other[0]!r}, ...): "
        "they have the new patches alone",
        file=sys.stderr,
    )


def _export(arguments: argparse.Namespace) -> None:
    count = export_results(PatchCache(arguments.cache), arguments.output, arguments.annotations, progress=True)
    print(f"{arguments.output}: {count} patches")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m proposal_cache",
        description="Look into patch caches, check them, and exchange them with other programs.\n\n"
        "A cache is a directory that scripts/generate_sam_patches.py makes: for every image of a dataset, by its key\n"
        "(the path under the image root, without suffix), masks with boxes and scores.",
        epilog="python -m proposal_cache COMMAND --help tells more, with examples.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    info = _add(commands, "info", _info, "what a cache holds: dataset, generators, numbers, failures", "info CACHE")
    _add_cache(info)

    check = _add(
        commands,
        "verify",
        _verify,
        "read every checksum and name each bad file",
        "verify CACHE && echo sound",
        "The exit status is 1 if any file is bad. A bad shard costs only its own images: delete it and run the\n"
        "command that made the cache again; it makes those images anew and nothing else.",
    )
    _add_cache(check)

    show = _add(
        commands,
        "show",
        _show,
        "draw the patches of an image",
        "show CACHE 000000000139 --image coco/val2017/000000000139.jpg --output patches.png",
    )
    _add_cache(show)
    show.add_argument("key", metavar="KEY", help="of the image; `info` shows the first ones")
    show.add_argument("--image", type=Path, metavar="FILE", help="to draw on; default: black")
    show.add_argument("--output", type=Path, required=True, metavar="FILE", help="picture to write")

    join = _add(
        commands,
        "merge",
        _merge,
        "make one cache of several",
        "merge sam regions --output both",
        "Caches may hold different images, or patches of the same images by different generators, which the new cache\n"
        "keeps apart as sources.",
        interrupted=_CONTINUES,
    )
    join.add_argument("caches", type=Path, nargs="+", metavar="CACHE")
    _add_output(join)
    join.add_argument("--dataset", metavar="NAME", help="of the new cache, needed where the old ones differ")

    take = _add(
        commands,
        "import",
        _import,
        "make a cache of another model's results",
        "import results.json --annotations instances_val2017.json --output theirs\n"
        "  python -m proposal_cache import panoptic.json --panoptic panoptic_pngs --keep-labels --output theirs\n"
        "  python -m proposal_cache import results.json --annotations images.json --add-to sam --output both",
        "RESULTS is a json of COCO results with masks, or a panoptic json. Labels are dropped unless asked for.",
        interrupted=_CONTINUES,
    )
    take.add_argument("results", type=Path, metavar="RESULTS", help="json")
    take.add_argument("--annotations", type=Path, metavar="FILE", help="COCO json with id, name and size of each image")
    take.add_argument("--panoptic", type=Path, metavar="DIR", help="folder of the PNGs of a panoptic json")
    take.add_argument("--add-to", type=Path, metavar="CACHE", help="write these patches together with those of CACHE")
    take.add_argument("--dataset", metavar="NAME", help="default: that of --add-to, or the name of RESULTS")
    take.add_argument("--keep-labels", action="store_true", help="keep each category as a source of its own")
    take.add_argument("--drop-scores", action="store_true", help="otherwise they are kept as predicted IoU")
    _add_output(take)

    give = _add(
        commands,
        "export",
        _export,
        "write a cache as COCO results",
        "export CACHE --annotations instances_val2017.json --output patches.json",
    )
    _add_cache(give)
    give.add_argument(
        "--annotations", type=Path, metavar="FILE", help="COCO json whose images' ids to use; default: the keys"
    )
    give.add_argument("--output", type=Path, required=True, metavar="FILE", help="json to write")
    return parser


def _add(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    run: Callable[[argparse.Namespace], int | None],
    summary: str,
    example: str,
    more: str = "",
    interrupted: str = _STARTS_AGAIN,
) -> argparse.ArgumentParser:
    command = commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.\n\n{more}".strip(),
        epilog=textwrap.dedent(f"example:\n  python -m proposal_cache {example}"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(run=run, interrupted=interrupted)
    return command


def _add_cache(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("cache", type=Path, metavar="CACHE", help="directory")


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="of the new cache")


def _first_keys(cache: PatchCache) -> list[str]:
    return [key for key, _ in zip(cache, range(_KEYS_SHOWN), strict=False)]


@contextmanager
def _folder_beside(path: Path) -> Iterator[Path]:
    """A temporary folder on the same disk."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = TemporaryDirectory(prefix=".import-", dir=path.parent)
    except OSError as error:
        raise CacheError(f"{path} cannot be made: {error.strerror}: {error.filename}") from error
    with folder as name:
        yield Path(name)


def _save(picture: NDArray[np.uint8], path: Path) -> None:
    try:
        Image.fromarray(picture).save(path)
    except (OSError, ValueError) as error:  # PIL raises ValueError for a suffix it does not know
        raise CacheError(f"{path} cannot be written: {error}") from error
