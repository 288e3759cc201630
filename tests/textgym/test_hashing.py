from statistics import fmean

import pytest

from textgym.hashing import hashed_id, hashed_share


def test_hashes_are_the_same_everywhere():
    """Samples would change their ids and splits."""
    assert hashed_id("") == "e3b0c44298fc1c14"  # of SHA-256 of nothing
    assert hashed_share("") == 0xE3B0C44298FC1C14 / 2**64 == pytest.approx(0.8894, abs=1e-4)


def test_shares_are_spread_evenly():
    shares = [hashed_share(f"key {i}") for i in range(2000)]
    assert 0 <= min(shares) < max(shares) <= 1
    assert fmean(share < 0.25 for share in shares) == pytest.approx(0.25, abs=0.04)
    assert fmean(shares) == pytest.approx(0.5, abs=0.03)
