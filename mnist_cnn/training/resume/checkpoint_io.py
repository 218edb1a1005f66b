"""Has Lightning write its checkpoints whole or not at all, as every file here, and check them when it reads them."""

from pathlib import Path
from typing import Any

from lightning.fabric.plugins import CheckpointIO

from mnist_cnn.files import write_file
from mnist_cnn.inference import checkpoint as checkpoints


class WholeCheckpoints(CheckpointIO):
    """Replaces Lightning's own plug-in, which truncates the old checkpoint before the new one is written.

    That one also needs the folder for temporary files, which may be full. OutputError if a file can't be written.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        path = Path(path)
        path.parent.mkdir(exist_ok=True)  # but not the run's folder: if that is gone, the run must not go on
        write_file(path, checkpoints.to_bytes(checkpoint))

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """The content, on the CPU; CheckpointError if the file is damaged or holds more than tensors and primitives."""
        return checkpoints.read(Path(path))

    def remove_checkpoint(self, path: str | Path) -> None:
        Path(path).unlink(missing_ok=True)
