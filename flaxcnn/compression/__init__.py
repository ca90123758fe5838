"""Deep Compression: prune, share, Huffman-code into one file (Han, Mao, Dally 2016).

Weights are pruned by magnitude (`prune.py`), the ones that stay share the values of a small
codebook (`share.py`), and both are Huffman coded into a `.fcz` file (`encode.py`, `huffman.py`)
that `flaxcnn.weights` reads. Retraining between the stages is the engine's (`optimizer.mask_file`
and `optimizer.share`). docs/compression.md.
"""
