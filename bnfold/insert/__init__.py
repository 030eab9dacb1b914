"""Give a network BatchNorm: without changing its function, or fresh, to be trained.

`ops`: which ops are linear, which are activations, and what lies between. `sites`: where a BN belongs. `measure`: what
is seen there. `parameters`: the four vectors of a BN. `place`: nodes and tensors into the model. `upgrade`: to a newer
opset. `api`: all of it.
"""
