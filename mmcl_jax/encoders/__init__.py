"""Encoders: flax modules called as `encoder(stream, train=...) -> Encoded`. `config.encoders` names them by file.

A file of this folder (or the dotted path of one's own) has a function `make(**arguments) -> nn.Module`.
"""
