"""Networks: a list of layers in Keras' words becomes a torch module."""
