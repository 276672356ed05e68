"""The tasks: one small record each. Every door reads TASKS; `verbs` makes them methods of `Idefics`."""

from idefics.tasks import ask, caption, classify, complete, write
from idefics.tasks.task import Task

TASKS: dict[str, Task] = {
    module.TASK.name: module.TASK for module in (caption, complete, ask, classify, write)
}
