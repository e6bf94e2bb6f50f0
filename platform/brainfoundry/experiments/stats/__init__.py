"""What scores of subjects say, and how sure it is: intervals, comparisons, draws, ranks, groups.

Pure functions of numbers. The coverage of every interval was measured by simulation and stands in its module.

    scores = per_subject(table, "dice_mean")                         # a ScoreTable -> {subject: value}
    cell = mean_interval(scores, bounds=bounds_of("dice_mean"))
    better, other = holm([paired_difference(ours, theirs), paired_difference(ours, others)])
    few = two_level(paired_draws(stage1, scratch))                   # {draw: {subject: value}} of both arms
"""

from brainfoundry.experiments.stats.draws import Repeated, TwoLevel, paired_draws, two_level
from brainfoundry.experiments.stats.groups import GroupRow, by_group
from brainfoundry.experiments.stats.paired import Comparison, holm, paired_difference
from brainfoundry.experiments.stats.ranks import RankStability, rank_stability
from brainfoundry.experiments.stats.repeats import Repeats, repeats, repeats_needed
from brainfoundry.tasks.intervals import Interval, mean_interval
from brainfoundry.tasks.scores import bounds_of, per_subject

__all__ = [
    "Comparison",
    "GroupRow",
    "Interval",
    "RankStability",
    "Repeated",
    "Repeats",
    "TwoLevel",
    "bounds_of",
    "by_group",
    "holm",
    "mean_interval",
    "paired_difference",
    "paired_draws",
    "per_subject",
    "rank_stability",
    "repeats",
    "repeats_needed",
    "two_level",
]
