"""recipes.transformer_lm with one narrow block: small_language_model.py FLAGS..."""

from recipes import transformer_lm
from recipes.common.run import run

if __name__ == "__main__":
    transformer_lm.SIZES["nano"] = transformer_lm.Size(1, 2, 8, 4, 1, transformer_lm.SIZES["nano"].training)
    run(transformer_lm.main)
