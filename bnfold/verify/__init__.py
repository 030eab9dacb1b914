"""How bnfold knows that a fold changed nothing.

`static`: each new parameter, recomputed in float64 from the original ones; needs no data, always done.
`relation`: both models run on the same inputs, and v' = s * (v + t) for every value that both have.
"""
