"""What a cohort asks of a model: its regions, its metrics, and tables of scores.

One file a task: `load_task("brats")` has the three nested tumour regions, `load_task("atlas")` the stroke
lesion.

Shape legend: N crops, R regions in the task's order, D H W spatial axes in storage order.
"""

from brainfoundry.tasks.base import Region, Task, load_task

__all__ = ["Region", "Task", "load_task"]
