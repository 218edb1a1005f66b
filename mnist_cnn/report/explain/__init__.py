"""The page of `mnist-cnn explain`: how a network reads one picture. It needs neither matplotlib nor Lightning."""
