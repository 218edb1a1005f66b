"""Data sets: fetch, verify, read and split them, and hand them out in batches.

Images are the tensors that a network is trained on, a data set is a named collection of them with a training and a test
part, and a source says where a data set's files come from and how they are read.
"""
