"""The tasks, one `Task` record each. `Idefics` has a method for each; the CLI, server and page read `TASKS`."""

from idefics.tasks import ask, caption, classify, complete, read, write
from idefics.tasks.task import Task

TASKS: dict[str, Task] = {
    module.TASK.name: module.TASK for module in (caption, complete, ask, classify, write, read)
}
