"""People, models and simulated annotators judge responses: a queue of items and a store that loses nothing.

`create_project` or `open_project` gives a `Project`; everything is asked of that.
"""

from accord.feedback.people.export import COLLECTED, ExportSettings
from accord.feedback.people.project import Project, create_project, list_projects, open_project
from accord.feedback.people.values import (
    Annotator,
    AnnotatorKind,
    AnnotatorState,
    Assignment,
    AssignmentKind,
    Event,
    EventKind,
    Idle,
    IdleReason,
    Item,
    ItemRole,
    Progress,
    ProjectSettings,
    QuestionKind,
    Role,
    Selection,
)

__all__ = [
    "COLLECTED",
    "Annotator",
    "AnnotatorKind",
    "AnnotatorState",
    "Assignment",
    "AssignmentKind",
    "Event",
    "EventKind",
    "ExportSettings",
    "Idle",
    "IdleReason",
    "Item",
    "ItemRole",
    "Progress",
    "Project",
    "ProjectSettings",
    "QuestionKind",
    "Role",
    "Selection",
    "create_project",
    "list_projects",
    "open_project",
]
