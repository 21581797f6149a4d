"""The contract of NAME.py: what every KIND keeps, so that its numbers mean what they say."""

from pathlib import Path

from mi_ray.plugins import contract_failures


def test_the_contract():
    assert contract_failures(Path(__file__).with_name("NAME.py")) == []
