"""Measure the population statistics of a model's BatchNormalizations on data, and write them back.

`sites`: which BNs can be measured, and what they hold. `data`: batches of inputs from any source.
`instrument`: a copy of the model whose BNs measure and say what they saw. `measure`: 'pooled', one pass over the data.
`exact`: level by level over segments. `write`: nothing but the statistics changes in the model.
`drift`: old and new statistics, compared. `api`: all of it.
"""
