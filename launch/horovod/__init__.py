"""Horovod: building it, proving it, and the server where its ranks find each other."""
