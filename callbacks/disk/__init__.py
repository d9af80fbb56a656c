"""Files on disk: their names, their format, their commit, and who may write them."""
