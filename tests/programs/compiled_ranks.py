"""A rank that trains the models of the recipes with and without XLA, and fails where the two differ.

python tests/programs/compiled_ranks.py ENGINE RECIPE PRECISION

It trains the model of one recipe in one precision, and two others in float64 and float32.
"""

import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import functools

from compiled import FLIPPED, MODELS, PART, Trained, assert_equal, assert_rounded_alike, digits, distance, language

from callbacks.ranks import install
from recipes.common.distribution import Distribution
from recipes.common.distribution.setup import ENGINES


def main(engine, recipe, precision):
    ranks = ENGINES[engine]()
    install(ranks)
    where = Distribution(engine, ("/cpu:0",), None, ranks)

    def both(make, precision, **options):
        plain, compiled = (Trained(make, where, choice, precision, **options) for choice in ("off", "on"))
        assert (plain.compiles, compiled.compiles) == ("", PART)
        return plain, compiled

    plain, compiled = both(language, "float64", steps_per_execution=4)
    assert_equal(plain, compiled, 1e-11)
    plain, compiled = both(functools.partial(digits, dropout=0.4), "float32", at_once=True)
    assert distance(compiled, plain) <= FLIPPED
    exact = Trained(MODELS[recipe], where, "off", "float64", at_once=True)
    plain, compiled = both(MODELS[recipe], precision, at_once=True)
    assert_rounded_alike(plain, compiled, exact, precision)


if __name__ == "__main__":
    main(*sys.argv[1:])
