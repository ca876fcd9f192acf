"""What a study asks, in words; imports nothing heavy."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Self

from flowbench.errors import UsageError

FILE = "study.json"


@dataclass(frozen=True)
class Study:
    """The words that head a report; the numbers come from the recorded runs."""

    name: str
    """The study's name, under which its runs are recorded."""
    question: str
    """What the study asks."""
    expected: str
    """What was expected before any run."""
    command: str
    """The command that makes these runs and this report again."""
    objectives: dict[str, str] = field(default_factory=dict)
    """minimize or maximize by metric; empty where the study has not recorded what it is after."""

    def write(self, directory: Path) -> None:
        """Keep the words beside the tables, so that the report can be made from these files."""
        text = json.dumps(asdict(self), indent=2, ensure_ascii=False)
        (directory / FILE).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Read back what ``write`` kept.

        Raises:
            UsageError: The file is missing or not of this kind.
        """
        path = directory / FILE
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError as error:
            raise UsageError(f"{path} does not exist: no report was made there") from error
        except (TypeError, ValueError) as error:
            raise UsageError(f"{path} is not the description of a study: {error}") from error
