"""What a study asks, in words; imports nothing heavy."""

from dataclasses import dataclass


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
