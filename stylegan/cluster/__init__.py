"""Ray: the only folder that imports it. Checkpoints and curves go to storage from rank 0, with or without Ray.

This file stays empty: the spare worker starts by importing its own file, and must not pay for torch or Ray.
"""
