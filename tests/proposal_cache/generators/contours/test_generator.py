"""ContourGenerator with the shipped weights on a photo and on degenerate images; its parts against literal versions."""

import itertools
import json
import pickle
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from skimage import data
from skimage.transform import resize

from proposal_cache import CacheError, ContourGenerator, Patches
from proposal_cache.errors import StorageError
from proposal_cache.generators.contours.generator import fit_borders, select_regions
from proposal_cache.generators.contours.graph import AREA, FloatArray, RegionGraph, region_graph
from proposal_cache.generators.contours.hierarchy import Hierarchy, Perceptron, build_hierarchy, pair_features
from proposal_cache.generators.contours.network import ContourNetwork
from proposal_cache.generators.contours.weights import SHIPPED, load_weights, save_weights
from tests.faults.conditions import disk_full


@pytest.fixture(scope="module")
def generator() -> ContourGenerator:
    return ContourGenerator()


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    return (resize(data.astronaut(), (192, 256), anti_aliasing=True) * 255).astype(np.uint8)


@pytest.fixture(scope="module")
def patches(generator: ContourGenerator, picture: np.ndarray) -> Patches:
    return generator(picture)


def test_finest_level_covers_every_pixel_once(generator: ContourGenerator, patches: Patches) -> None:
    masks = patches.decode(slice(0, generator.parts))
    assert (masks.sum(0) == 1).all()


def test_number_and_sizes_of_patches(generator: ContourGenerator, patches: Patches, picture: np.ndarray) -> None:
    assert generator.parts < len(patches) <= generator.patches
    assert 5 < len(ContourGenerator(patches=9)(picture)) <= 9
    share = patches.areas / picture[..., 0].size
    assert share.min() < 0.002 < 0.1 < share.max()


def test_patches_are_nested_or_disjoint(patches: Patches) -> None:
    iop = patches.iop(patches)
    crossing = (iop > 0) & (iop < 1) & (iop.T > 0) & (iop.T < 1)
    assert not crossing.any()


def test_no_duplicates_beyond_the_finest_level(generator: ContourGenerator, patches: Patches) -> None:
    iou = patches.iou(patches)
    np.fill_diagonal(iou, 0)
    assert iou.max() <= generator.duplicate_iou


def test_deterministic_and_picklable(generator: ContourGenerator, picture: np.ndarray, patches: Patches) -> None:
    assert generator(picture).rles == patches.rles
    assert pickle.loads(pickle.dumps(generator))(picture).rles == patches.rles


def test_finds_objects_of_a_photo(generator: ContourGenerator) -> None:
    coffee = data.coffee()
    y, x = np.mgrid[: coffee.shape[0], : coffee.shape[1]]
    liquid, saucer_with_cup = (
        ((x - center[0]) / radii[0]) ** 2 + ((y - center[1]) / radii[1]) ** 2 < 1
        for center, radii in (((285, 156), (74, 40)), ((281, 235), (200, 155)))
    )
    iou = Patches.from_masks(np.stack([liquid, saucer_with_cup])).iou(generator(coffee)).max(1)
    assert (iou > 0.7).all()


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((1, 1, 3), np.uint8),
        np.full((3, 200, 3), 130, np.uint8),
        np.full((64, 48, 3), 255, np.uint8),
        np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8),
    ],
    ids=["one pixel", "thin", "constant", "noise"],
)
def test_degenerate_images(generator: ContourGenerator, image: np.ndarray) -> None:
    patches = generator(image)
    assert (patches.height, patches.width) == image.shape[:2]
    assert patches.decode().any(0).all()
    assert (patches.areas > 0).all()


def test_working_size(picture: np.ndarray) -> None:
    patches = ContourGenerator(pixels=4000)(picture)
    assert (patches.height, patches.width) == picture.shape[:2]
    assert patches.decode().any(0).all()


def test_description(generator: ContourGenerator) -> None:
    description = ContourGenerator(parts=7).describe()
    assert json.loads(json.dumps(description)) == description
    assert description == generator.describe() | {"name": "contours", "parts": 7}
    assert len(description["weights_sha256"]) == 64


@pytest.mark.parametrize(
    ("name", "value"), [("parts", 0), ("patches", 0), ("duplicate_iou", 0.0), ("pixels", 0), ("weights", "absent")]
)
def test_rejects_invalid_parameters(name: str, value: Any) -> None:
    with pytest.raises(CacheError, match=name):
        ContourGenerator(**{name: value})


def test_weights_round_trip(tmp_path: Path, generator: ContourGenerator, picture: np.ndarray) -> None:
    shipped = load_weights(None, "cpu")
    save_weights(tmp_path / "copy.safetensors", shipped.network, shipped.merge)
    assert ContourGenerator(weights=tmp_path / "copy.safetensors")(picture).rles == generator(picture).rles


def test_weights_are_written_atomically(tmp_path: Path) -> None:
    shipped = load_weights(None, "cpu")
    file = tmp_path / "contours.safetensors"
    with disk_full(), pytest.raises(StorageError, match=r"contours\.safetensors cannot be written"):
        save_weights(file, shipped.network, shipped.merge)
    assert list(tmp_path.iterdir()) == []


def test_rejects_damaged_weights(tmp_path: Path) -> None:
    file = tmp_path / "cut.safetensors"
    file.write_bytes(SHIPPED.read_bytes()[:100_000])
    with pytest.raises(CacheError, match=r"cut\.safetensors is damaged"):
        ContourGenerator(weights=file)


def test_network_output_sizes() -> None:
    boundary, embedding = ContourNetwork().eval().predict(torch.zeros(3, 32, 64))
    assert boundary.shape == (32, 64)
    assert embedding.shape[1:] == (8, 16)


def test_graph_against_loops() -> None:
    random = np.random.default_rng(1)
    labels = np.kron(np.arange(12).reshape(3, 4), np.ones((3, 2), np.int64)).astype(np.int64)  # (9, 8)
    lab = random.uniform(0, 100, (3, 9, 8)).astype(np.float32)
    boundary, embedding = random.random((9, 8)).astype(np.float32), random.random((5, 3, 2)).astype(np.float32)
    graph = region_graph(lab, labels, boundary, embedding)
    borders: dict[tuple[int, int], list[float]] = {}
    for y, x in itertools.product(range(9), range(8)):
        for v, u in ((y, x + 1), (y + 1, x)):
            if v < 9 and u < 8 and labels[y, x] != labels[v, u]:
                pair = (int(min(labels[y, x], labels[v, u])), int(max(labels[y, x], labels[v, u])))
                borders.setdefault(pair, []).append(max(boundary[y, x], boundary[v, u]))
    assert list(zip(graph.first.tolist(), graph.second.tolist(), strict=True)) == sorted(borders)
    expected = [[len(b), sum(b), sum(value**2 for value in b)] for _, b in sorted(borders.items())]
    np.testing.assert_allclose(graph.borders, expected, rtol=1e-6)
    for region in range(12):
        inside = np.argwhere(labels == region)
        row = graph.regions[region]
        assert row[AREA] == len(inside)
        np.testing.assert_allclose(row[1:4], lab[:, labels == region].sum(1), rtol=1e-5)
        assert row[4:40].reshape(4, 9).sum(1).tolist() == [len(inside)] * 4
        np.testing.assert_allclose(row[40:], sum(embedding[:, y // 4, x // 4] for y, x in inside), rtol=1e-5)


def test_hierarchy_against_exhaustive_search() -> None:
    graph, cost = _random_graph(30), _cost
    hierarchy = build_hierarchy(graph, cost)
    regions = dict(enumerate(graph.regions))
    borders = {(int(a), int(b)): row for a, b, row in zip(graph.first, graph.second, graph.borders, strict=True)}
    for merge, (a, b) in enumerate(hierarchy.children.tolist(), 30):
        costs = {pair: cost(regions[pair[0]], regions[pair[1]][None], row[None])[0] for pair, row in borders.items()}
        assert costs[min(a, b), max(a, b)] == pytest.approx(min(costs.values()))
        regions[merge] = regions.pop(a) + regions.pop(b)
        merged: dict[tuple[int, int], FloatArray] = {}
        for pair, row in borders.items():
            renamed = sorted({merge if region in (a, b) else region for region in pair})
            if len(renamed) == 2:
                key = renamed[0], renamed[1]
                merged[key] = merged.get(key, 0) + row
        borders = merged
        assert hierarchy.areas[merge] == regions[merge][AREA]
    assert len(regions) == 1
    assert (np.diff(hierarchy.heights) >= 0).all()


def test_pair_features_are_symmetric() -> None:
    graph = _random_graph(20)
    one, other = graph.regions[graph.first], graph.regions[graph.second]
    features = pair_features(one, other, graph.borders, 1000)
    np.testing.assert_allclose(features, pair_features(other, one, graph.borders, 1000))
    single = pair_features(one[0], other[:1], graph.borders[:1], 1000)
    np.testing.assert_allclose(features[:1], single)


def test_selection_takes_the_level_and_then_what_is_merged_last() -> None:
    # Leaves 0..3; 4 = 0 + 1, 5 = 4 + 2, 6 = 5 + 3.
    children = np.array([(0, 1), (4, 2), (5, 3)])
    hierarchy = Hierarchy(np.array([10.0, 1, 8, 30, 11, 19, 49]), children, np.array([1.0, 2.0, 3.0]))
    assert hierarchy.parents.tolist() == [4, 4, 5, 6, 5, 6, -1]
    assert select_regions(hierarchy, 9, parts=2, duplicate_iou=0.8).tolist() == [3, 5, 6, 2, 4, 1]  # 0 is 10/11 of 4
    assert select_regions(hierarchy, 4, parts=2, duplicate_iou=0.8).tolist() == [3, 5, 6, 2]
    assert select_regions(hierarchy, 9, parts=2, duplicate_iou=1.0).tolist() == [3, 5, 6, 2, 4, 0, 1]
    assert select_regions(hierarchy, 1, parts=4, duplicate_iou=0.8).tolist() == [0, 1, 2, 3]


def test_borders_are_fitted_to_colours() -> None:
    image = np.zeros((4, 8, 3), np.uint8)
    image[:, 3:], image[1, 3], image[2, 3] = 100, 30, 60  # the last pixel is between the two colours
    labels = np.repeat([[0, 0, 0, 0, 1, 1, 1, 1]], 4, axis=0)
    fitted = fit_borders(labels, image)
    assert fitted[:, :3].max() == 0
    assert fitted[:, 3].tolist() == [1, 0, 0, 1]
    assert fitted[:, 4:].min() == 1


def test_memory_per_pixel_is_bounded() -> None:
    """In blocks and with small types: three bytes per pixel of 16-bit labels are the result and its comparison."""
    labels = (np.arange(2000)[:, None] // 50 * 40 + np.arange(2000) // 50).astype(np.uint16)
    image = np.repeat(labels[..., None].astype(np.uint8), 3, axis=2)
    tracemalloc.start()
    fit_borders(labels, image)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 150e6, "30 bytes for each pixel of a block and 2 for each other one"


def test_blocks_do_not_change_the_borders(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    labels = np.kron(random.integers(0, 5, (6, 7)), np.ones((9, 8), int))
    image = (labels[..., None] * 50 + random.integers(-60, 60, (*labels.shape, 3))).clip(0, 255).astype(np.uint8)
    expected = fit_borders(labels, image)
    monkeypatch.setattr("proposal_cache.generators.contours.generator._BLOCK", 200)
    np.testing.assert_array_equal(fit_borders(labels, image), expected)
    assert (expected != labels).any()


def test_perceptron_against_torch() -> None:
    hidden, output = torch.nn.Linear(3, 4).double(), torch.nn.Linear(4, 1).double()
    values = torch.rand(5, 3, dtype=torch.float64)
    weight, bias, out, out_bias = (p.detach().numpy() for p in (*hidden.parameters(), *output.parameters()))
    result = Perceptron(weight.T, bias, out[0], float(out_bias[0]))(values.numpy())
    np.testing.assert_allclose(result, output(hidden(values).relu())[:, 0].detach().numpy())


def _random_graph(count: int) -> RegionGraph:
    """Return a chain of regions with random other borders."""
    random = np.random.default_rng(0)
    others = np.sort(random.integers(count, size=(40, 2)), axis=1)
    chain = np.stack([np.arange(count - 1), np.arange(1, count)], axis=1)
    first, second = np.unique(np.concatenate([chain, others[others[:, 0] < others[:, 1]]]), axis=0).T
    borders = random.uniform(1, 5, (len(first), 3))
    return RegionGraph(random.uniform(1, 9, (count, 44)), first, second, borders)


def _cost(one: FloatArray, others: FloatArray, borders: FloatArray) -> FloatArray:
    return pair_features(one, others, borders, 1000)[:, :4].sum(1)
