"""Record which steps have run, so that a second run knows what is finished.

`<output>/steps/<step>.json` holds a fingerprint of everything that a step depends on: its command,
its whole config, and the output of the steps before it.
"""

import hashlib
import shutil
from pathlib import Path

from anoseg_d2.utils.files import file_hash, read_json, write_json
from driver.recipe import Recipe, Step

__all__ = ["Records"]


class Records:
    """Records of a recipe's steps.

    Args:
        recipe: whose output folder holds the records.
        configs: stage name -> text of its whole config.
    """

    def __init__(self, recipe: Recipe, configs: dict[str, str]):
        self.recipe, self.configs = recipe, configs
        self.folder = recipe.output / "steps"

    def read(self, name: str) -> dict:
        """Return the record of a step, empty if it was never started."""
        path = self._path(name)
        return read_json(path) if path.exists() else {}

    def is_done(self, step: Step) -> bool:
        """Return whether the step is finished with the present settings.

        Raises:
            ValueError: it was started with other settings.
        """
        record = self.read(step.name)
        if not record:
            return False
        if record["fingerprint"] != self._fingerprint(step):
            again = "--only" if step.run else "--from"
            raise ValueError(
                f"{step.name} was run with other settings, or what it starts from was made again; "
                f"to make it again: {again} {step.name} --redo; to keep what is there: --output "
                "with another folder"
            )
        return record["outcome"] == "left out" or (
            record["outcome"] == "done" and step.makes.exists()
        )

    def begin(self, step: Step) -> None:
        """Note that the step has started, keeping the time of earlier attempts."""
        seconds = self.read(step.name).get("seconds", 0.0)
        self._write(step, {"outcome": "begun", "seconds": seconds})

    def add_time(self, step: Step, seconds: float) -> None:
        """Add the time of an attempt that did not finish."""
        record = self.read(step.name)
        self._write(step, {**record, "seconds": record["seconds"] + seconds})

    def finish(self, step: Step, seconds: float, peak_mib: float) -> None:
        """Note that the step has succeeded, and what it made."""
        seconds += self.read(step.name)["seconds"]
        facts = {"outcome": "done", "seconds": seconds, "peak_mib": peak_mib}
        self._write(step, {**facts, "made": self._made(step)})

    def leave_out(self, step: Step) -> None:
        """Note that the step has failed and the others continue without it."""
        self._write(step, {**self.read(step.name), "outcome": "left out", "made": ""})

    def _made(self, step: Step) -> str:
        """Return the digest of a stage's checkpoint, or of a data step's command."""
        if not step.is_stage:
            return self._fingerprint(step)
        checkpoint = step.folder / "model_final.pth"
        if not checkpoint.exists():  # a run that only evaluates
            return ""
        return file_hash(checkpoint)

    def forget(self, step: Step) -> None:
        """Delete what the step has made."""
        self._path(step.name).unlink(missing_ok=True)
        if step.folder.is_dir():
            shutil.rmtree(step.folder)

    def _fingerprint(self, step: Step) -> str:
        parts = [*step.arguments, self.configs.get(step.name, "")]
        parts += [self.read(name).get("made", "") for name in self._before(step)]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    def _before(self, step: Step) -> list[str]:
        """List what the step depends on: earlier data steps, and the stage that it starts from."""
        names = []
        for other in self.recipe.steps:
            if other.name == step.name:
                break
            if not other.is_stage or other.name == step.start:
                names.append(other.name)
        return names

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.json"

    def _write(self, step: Step, record: dict) -> None:
        record = {"command": " ".join(step.arguments), **record}
        record["fingerprint"] = self._fingerprint(step)
        write_json(self._path(step.name), record)
