"""Commands about many runs. Each module is one command, as those of mnist_cnn.commands are."""
