"""Keras files: imported as checkpoints and exported from networks, without Keras.

The dialects of Keras 1 and 2 and of Theano are translated here, so that `network` has Keras 3's names and arguments
only. Some of it is there for imported models alone: graphs (`network/graph.py`), LSTM, InstanceNormalization and the
activations `log` and `hard_sigmoid_keras2`.
"""
