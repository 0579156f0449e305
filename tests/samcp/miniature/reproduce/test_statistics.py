"""Paired test of a claim against values computed by hand."""

import pytest

from samcp.miniature.reproduce.statistics import FAILS, HOLDS, UNDECIDED, paired_test


def test_significant_difference_holds():
    """Differences 2, 3, 4: mean 3, standard deviation 1, t = 3 √3 = 5.196, one-sided p with 2 degrees of freedom."""
    verdict = paired_test([12, 13, 14], [10, 10, 10])
    assert verdict.decision == HOLDS
    assert verdict.difference == 3
    t = 3 * 3**0.5
    assert verdict.p == pytest.approx(0.5 - t / (2 * (t**2 + 2) ** 0.5))  # Student's distribution in closed form


def test_significant_difference_in_the_other_direction_does_not_hold():
    assert paired_test([10, 10, 10], [12, 13, 14]).decision == FAILS


def test_pairs_count_and_not_means():
    """The same means; the differences are 1, 1.1, 0.9 or vary by 10."""
    assert paired_test([1, 11.1, 20.9], [0, 10, 20]).decision == HOLDS
    assert paired_test([11.1, 20.9, 1], [0, 10, 20]).decision == UNDECIDED


def test_factor():
    assert paired_test([85, 86, 87], [100, 100, 100], factor=0.8).difference == pytest.approx(6)


def test_one_seed_gives_the_direction_only():
    verdict = paired_test([2], [1])
    assert (verdict.decision, verdict.p) == (HOLDS, None)
    assert str(verdict) == "holds (direction only)"
    assert paired_test([1], [2]).decision == FAILS
    assert paired_test([1], [1]).decision == UNDECIDED


def test_value_without_seeds_is_compared_with_each_seed():
    assert paired_test([90, 91, 92], [100], factor=0.85).difference == pytest.approx(6)


def test_equal_differences():
    assert paired_test([1, 2, 3], [0, 1, 2]).decision == HOLDS
    assert paired_test([0, 0, 0], [0, 0, 0]).decision == UNDECIDED
