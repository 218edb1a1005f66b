"""The page of `mnist-cnn explain`: how a network reads one picture, drawn without matplotlib and Lightning."""
