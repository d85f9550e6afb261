"""What the build side and the Pi both know, and the only thing that they both know.

The contract decides what a window, a motif head, a release and a channel are, and checks bytes
against digests. It refuses to decide who may promote, how a model runs, and how HTTP looks; it
imports the standard library, numpy and xxhash, nothing else.
"""
