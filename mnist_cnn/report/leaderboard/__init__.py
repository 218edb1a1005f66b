"""The leaderboard of many runs: which settings are the best on validation images, and which can't be told apart."""

from mnist_cnn.report.leaderboard.write import Leaderboard, leaderboard, write_leaderboard

__all__ = ["Leaderboard", "leaderboard", "write_leaderboard"]
