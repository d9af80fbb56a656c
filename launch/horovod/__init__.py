"""Builds and tests Horovod, and runs its rendezvous server."""
